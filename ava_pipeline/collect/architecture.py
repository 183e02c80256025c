"""Finds the head and the last stage of the backbone of common kinds of models."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ava_pipeline.collect.targets import unwrap

HEAD_NAMES = ("mlp_head", "head", "classifier", "fc", "heads")
BACKBONE_NAMES = ("backbone", "encoder", "features", "trunk", "body")
_NOT_IN_A_COLUMN_NAME = re.compile(r"[^A-Za-z0-9_\-/]")


def find_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Find the parts of a model that get their own column.

    Known are torchvision's ResNet with any `fc`, timm models (by `get_classifier()` and `feature_info`), and models
    with children named like `backbone` and `head`. Names say nothing about the parts of other models, such as a plain
    `nn.Sequential`, whose last layer may or may not be a head: they have none.

    The columns are `backbone_<last stage>` (or `backbone`, without stages), `mlp_head`, and `mlp_layer_<index>` if the
    head has several layers. Characters that a column's name cannot contain become `_`.
    """
    model = unwrap(model)
    backbone = _child(model, BACKBONE_NAMES) or model
    head = _head(model)
    parts = _last_stage(model, backbone, head)
    if head is not None:
        parts["mlp_head"] = head
        parts |= _head_layers(head)
    return _with_column_names(parts)


def _head(model: nn.Module) -> nn.Module | None:
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if callable(get_classifier) else _child(model, HEAD_NAMES)
    return found if isinstance(found, nn.Module) and _has_parameters(found) else None


def _head_layers(head: nn.Module) -> dict[str, nn.Module]:
    layers = dict(head.named_children()) if isinstance(head, nn.Sequential) else {}
    layers = {f"mlp_layer_{index}": layer for index, layer in layers.items() if _has_parameters(layer)}
    return layers if len(layers) > 1 else {}


def _last_stage(model: nn.Module, backbone: nn.Module, head: nn.Module | None) -> dict[str, nn.Module]:
    name = _declared_last_stage(backbone)
    if name is None and (backbone is not model or head is not None):
        name = _likely_last_stage(backbone, head)
    if name is not None:
        return {f"backbone_{name}": backbone.get_submodule(name)}
    return {"backbone": backbone} if backbone is not model else {}


def _declared_last_stage(backbone: nn.Module) -> str | None:
    if isinstance(getattr(backbone, "layer4", None), nn.Module):
        return "layer4"
    return _timm_last_stage(getattr(backbone, "feature_info", None))


def _likely_last_stage(backbone: nn.Module, head: nn.Module | None) -> str | None:
    """The last child that is neither the head nor an auxiliary one, such as GoogLeNet's."""
    children = {name: child for name, child in backbone.named_children() if not name.lower().startswith("aux")}
    layers = [name for name, child in children.items() if child is not head and _has_parameters(child)]
    # A stage is made of layers; a norm after the last stage is not.
    stages = [name for name in layers if next(children[name].children(), None) is not None]
    if len(stages) == 1:
        blocks = [name for name, child in children[stages[0]].named_children() if _has_parameters(child)]
        return f"{stages[0]}.{blocks[-1]}"
    return next(reversed(stages or layers), None)


def _timm_last_stage(feature_info: Any) -> str | None:
    """Read timm's `feature_info`: a list of dicts or a FeatureInfo around one, each naming a feature's module."""
    stages = getattr(feature_info, "info", feature_info)
    if not isinstance(stages, list) or not stages or not isinstance(stages[-1], Mapping):
        return None
    return str(stages[-1]["module"])


def _with_column_names(parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    columns: dict[str, nn.Module] = {}
    for name, part in parts.items():
        column = _NOT_IN_A_COLUMN_NAME.sub("_", name)
        while column in columns:
            column += "_"
        columns[column] = part
    return columns


def _child(model: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(model.named_children())
    return next((children[name] for name in names if name in children and _has_parameters(children[name])), None)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
