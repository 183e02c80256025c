"""Finds the head and the last stage of the backbone of a model, by the families in `families.py`.

What is found is a guess about foreign code, so it never raises: what fails in one way of finding is looked for in the
next, and a model in which nothing is found has no parts.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from torch import nn

from ava_pipeline.collect.families import BACKBONE_NAMES, FAMILIES, WRAPPED_NAMES, Heads, Modules
from ava_pipeline.collect.structure import (
    MAX_DEPTH,
    children_with_parameters,
    contains,
    has_layers,
    inner,
    mlp_layers,
    overlaps,
)
from ava_pipeline.collect.targets import unwrap
from ava_pipeline.contract.manifest import Role
from ava_pipeline.logs import logger

Answer = TypeVar("Answer")

_NOT_IN_A_COLUMN_NAME = re.compile(r"[^A-Za-z0-9_\-/]")


class Part(NamedTuple):
    """A part of a model that gets a column of its own: one module, or several that belong together."""

    role: Role
    modules: tuple[nn.Module, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the modules."""
        return (parameter for module in self.modules for parameter in module.parameters())


def find_parts(model: nn.Module) -> dict[str, Part]:
    """Find the parts of a model that get their own column. Never raises.

    The columns are `backbone_<last stage>` (or `backbone`, without stages), `mlp_head`, and `mlp_layer_<index>` if the
    head is an MLP. A model with several heads has them all in `mlp_head`, and each in `mlp_head_<name>`. Characters
    that a column's name cannot contain become `_`. docs/models.md lists the columns of many models.

    Names say nothing about the parts of some models, such as a plain `nn.Sequential`, whose last layer may or may not
    be a head: they have no parts.
    """
    return _with_column_names(_ask("all ways", _parts, model) or {})


def _parts(model: nn.Module, *, is_backbone: bool = False) -> dict[str, Part]:
    """The parts by name; `is_backbone` says that the model is what another one calls its backbone."""
    model = _without_wrappers(model)
    heads = _heads(model)
    modules = [module for head in heads.values() for module in head]
    backbone = next(_answers([(family.name, family.backbone) for family in FAMILIES], model, modules), None)
    inside = _wrapped(model) if backbone is None else backbone
    if not heads and inside is not None and inside is not model:
        return _parts(inside, is_backbone=is_backbone or backbone is not None)
    is_known = is_backbone or bool(heads) or backbone is not None
    root = model if backbone is None else backbone
    is_apart = is_backbone or root is not model
    return _backbone_part(root, modules, is_known=is_known, is_apart=is_apart) | _head_parts(heads)


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The child that is called the model, beside others such as a loss with parameters."""
    children = children_with_parameters(model)
    return next((children[name] for name in WRAPPED_NAMES if name in children), None)


def _without_wrappers(model: nn.Module) -> nn.Module:
    """The model inside data parallelism, `torch.compile`, PEFT, a LightningModule and the like."""
    for _ in range(MAX_DEPTH):
        model = unwrap(model)
        wrapped = inner(model)
        if wrapped is None or not children_with_parameters(model).keys().isdisjoint(BACKBONE_NAMES):
            break
        model = wrapped
    return model


def _innermost(backbone: nn.Module, heads: Modules) -> nn.Module:
    """The backbone in a backbone, as detectors have it."""
    for _ in range(MAX_DEPTH):
        inside = children_with_parameters(backbone).get("backbone", inner(backbone))
        if inside is None or contains(inside, heads):
            break
        backbone = unwrap(inside)
    return backbone


def _heads(model: nn.Module) -> Heads:
    own = {id(parameter) for parameter in model.parameters()}

    def is_head(module: object) -> bool:
        return (
            isinstance(module, nn.Module)
            and has_layers(module)
            and all(id(parameter) in own for parameter in module.parameters())
        )

    for found in _answers([(family.name, family.heads) for family in FAMILIES], model):
        heads = {name: tuple(filter(is_head, modules)) for name, modules in found.items()}
        if any(heads.values()):
            return {name: modules for name, modules in heads.items() if modules}
    return {}


def _backbone_part(backbone: nn.Module, heads: Modules, *, is_known: bool, is_apart: bool) -> dict[str, Part]:
    """The last stage of a backbone; the whole backbone if no stage is found and it is a module apart from the head.

    If nothing says that this is a backbone, the structure alone suggests no stage.
    """
    root = _innermost(backbone, heads)
    unused = [module for head in _heads(root).values() for module in head] if is_apart or root is not backbone else []
    ways = [(family.name, family.last_stage) for family in FAMILIES if is_known or family.name != "structure"]
    for stage in _answers(ways, root, [*heads, *unused]):
        if has_layers(stage.module) and not overlaps(stage.module, heads):
            return {f"backbone_{stage.name}": Part("backbone_last", (stage.module,))}
    return {"backbone": Part("backbone_last", (backbone,))} if is_apart else {}


def _head_parts(heads: Heads) -> dict[str, Part]:
    if not heads:
        return {}
    modules = tuple(module for head in heads.values() for module in head)
    parts = {"mlp_head": Part("head", modules)}
    if len(modules) == 1:
        layers = mlp_layers(modules[0])
        return parts | {f"mlp_layer_{index}": Part("head_layer", (layer,)) for index, layer in layers.items()}
    if len(heads) > 1:
        parts |= {f"mlp_head_{name}": Part("head_layer", head) for name, head in heads.items()}
    return parts


def _answers(
    ways: Iterable[tuple[str, Callable[..., Answer | None] | None]], model: nn.Module, *given: object
) -> Iterator[Answer]:
    """What is found in each way, in order of trust, without the ways that find nothing or fail."""
    for name, way in ways:
        found = _ask(name, way, model, *given) if way is not None else None
        if found is not None:  # a module may be false
            yield found


def _ask(name: str, way: Callable[..., Answer], model: nn.Module, *given: object) -> Answer | None:
    """Call what reads foreign code; return None if that raises anything."""
    try:
        return way(model, *given)
    except Exception as error:  # noqa: BLE001  # a model's own methods and properties may raise anything
        logger.info(
            "Looking for the parts of %s by %s failed (%s: %s); the next way is tried.",
            type(model).__name__,
            name,
            type(error).__name__,
            error,
        )
        return None


def _with_column_names(parts: Mapping[str, Part]) -> dict[str, Part]:
    columns: dict[str, Part] = {}
    for name, part in parts.items():
        column = _NOT_IN_A_COLUMN_NAME.sub("_", name)
        while column in columns:
            column += "_"
        columns[column] = part
    return columns
