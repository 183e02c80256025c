"""What the tree of a model's modules says, without any names of a library: layers, wrappers, heads, stages."""

import re
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple

from torch import nn

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MAX_DEPTH = 20  # of wrappers; a model whose modules contain each other must not be followed forever
MOST = 0.9  # from this share of the parameters on, the last stage is a container of all stages

# Children that are beside, before or behind the stages of a backbone.
_NOT_A_STAGE = re.compile(
    r"norm|pool|embed|fpn|loss|criterion|metric|teacher"
    r"|(^|_)(stem|neck|ema|pos|extra)s?\d*($|_)|^(aux|dec|up|pre_)"
)
_NOT_A_LAYER = re.compile(r"norm|relu|scale", re.IGNORECASE)


class Stage(NamedTuple):
    """A stage of a backbone, and the name by which `get_submodule` finds it there."""

    name: str
    module: nn.Module


def num_layers(module: nn.Module, *, at_most: int) -> int:
    """Count the modules inside that hold parameters and are neither a norm nor an activation, up to `at_most`."""
    return sum(1 for _ in islice(filter(_is_layer, module.modules()), at_most))


def has_layers(module: nn.Module) -> bool:
    """Whether any layer is inside."""
    return num_layers(module, at_most=1) == 1


def is_stage(module: nn.Module) -> bool:
    """Whether it is made of layers: a norm, a single layer and a convolution with its norm are not."""
    return num_layers(module, at_most=2) > 1


def children_with_parameters(module: nn.Module) -> dict[str, nn.Module]:
    """The children by name, without those that have no parameters."""
    return {name: child for name, child in module.named_children() if next(child.parameters(), None) is not None}


def inner(module: nn.Module) -> nn.Module | None:
    """The module in a wrapper: its only child with parameters, unless that is a list of layers or a layer."""
    children = [*children_with_parameters(module).values()]
    if len(children) != 1 or isinstance(children[0], LISTS) or next(children[0].children(), None) is None:
        return None
    return children[0]


def contains(module: nn.Module, others: Collection[nn.Module]) -> bool:
    """Whether any of the others is this module or inside it."""
    return any(inside is other for inside in module.modules() for other in others)


def overlaps(module: nn.Module, others: Collection[nn.Module]) -> bool:
    """Whether any of the others is this module, inside it or around it."""
    return contains(module, others) or any(contains(other, [module]) for other in others)


def stages(module: nn.Module, heads: Collection[nn.Module]) -> dict[str, nn.Module]:
    """The children that are made of layers, without the heads and what is beside a backbone's stages."""
    return {name: child for name, child in _layers(module, heads).items() if is_stage(child)}


def last_stage(backbone: nn.Module, heads: Collection[nn.Module]) -> Stage | None:
    """Find the last child that is made of layers, looking into a child that holds all stages or nearly all.

    Where layers are not grouped into stages, it is the last layer.
    """
    module, path = backbone, list[str]()
    for _ in range(MAX_DEPTH):
        found = stages(module, heads)
        if not found:
            break
        name, stage = [*found.items()][-1]
        path.append(name)
        is_list = isinstance(module, LISTS)
        is_only_list = len(found) == 1 and isinstance(stage, LISTS)
        if (is_list and not is_only_list) or _size(stage) < MOST * sum(map(_size, found.values())):
            return Stage(".".join(path), stage)
        module = stage
    if not path or isinstance(module, LISTS):
        path += [*_layers(module, heads)][-1:]
    return Stage(".".join(path), backbone.get_submodule(".".join(path))) if path else None


def head_and_body(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The two parts of an `nn.Sequential` of a body and, behind it, a head: the head's layers are all linear."""
    children = [*children_with_parameters(model).values()]
    if not isinstance(model, nn.Sequential) or len(children) != 2:  # noqa: PLR2004  # a body and a head
        return None
    body, head = children
    is_split = is_stage(body) and not _is_linear(body) and _is_linear(head) and has_layers(head)
    return (head, body) if is_split else None


def mlp_layers(head: nn.Module) -> dict[str, nn.Module]:
    """The layers of a head that is an MLP, by their index, those without parameters left out; empty for other heads.

    An MLP is an `nn.Sequential` with at least two linear layers. Blocks of it may be `nn.Sequential` themselves, and
    it may be the only child of a module of the user's own.
    """
    for _ in range(MAX_DEPTH):
        layers = children_with_parameters(head)
        if isinstance(head, nn.Sequential) and len(layers) > 1:
            return layers if sum(map(_has_linear, layers.values())) > 1 else {}
        if len(layers) != 1:
            return {}
        head = next(iter(layers.values()))
    return {}


def _is_layer(module: nn.Module) -> bool:
    has_own = next(module.parameters(recurse=False), None) is not None
    return has_own and _NOT_A_LAYER.search(type(module).__name__) is None


def _layers(module: nn.Module, heads: Collection[nn.Module]) -> dict[str, nn.Module]:
    return {
        name: child
        for name, child in module.named_children()
        if _NOT_A_STAGE.search(name.lower()) is None and has_layers(child) and not contains(child, heads)
    }


def _is_linear(module: nn.Module) -> bool:
    return all(isinstance(layer, nn.Linear) for layer in filter(_is_layer, module.modules()))


def _has_linear(layer: nn.Module) -> bool:
    blocks = layer.modules() if isinstance(layer, nn.Sequential) else [layer]
    return any(isinstance(block, nn.Linear) for block in blocks)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
