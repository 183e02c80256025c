"""How the parts of each family of models are found. A new family is one more entry of FAMILIES."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from ava_pipeline.collect.structure import (
    LISTS,
    Stage,
    children_with_parameters,
    has_layers,
    head_and_body,
    last_stage,
    overlaps,
    stages,
)

HEAD_NAMES = (
    *("mlp_head", "head", "heads", "classifier", "fc", "mlp", "regressor", "predictor", "score_head", "score"),
    *("lm_head", "fc_out", "last_linear", "cls", "qa_outputs", "embed_out"),
    *("rpn", "roi_heads", "decode_head", "segmentation_head", "aux_classifier", "auxiliary_head"),
)
BACKBONE_NAMES = ("backbone", "encoder", "features", "trunk", "body", "feature_extractor", "image_encoder", "visual")
WRAPPED_NAMES = ("model", "net", "network", "module", "base_model")

_LIKE_A_HEAD = re.compile(r"(?<!conv_)(head|classifier|predictor|regressor)s?\d*($|_)")
_OUTPUT_NAMES = (
    *("output", "out", "outc", "out_conv", "conv_out", "output_layer", "proj_out", "linear"),
    *("final", "final_conv", "final_layer"),
)
_RESIDUAL_BLOCKS = {"BasicBlock", "Bottleneck"}
_LEAST_RESIDUAL_STAGES = 3

Heads: TypeAlias = Mapping[str, tuple[nn.Module, ...]]
Modules: TypeAlias = Collection[nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How parts are found in one family of models.

    A function returns nothing for a model that it does not know, and may raise: then the next family is asked.

    Attributes:
        name: as the log calls it.
        heads: of a model, its heads by name; one that is made of several modules has them all.
        backbone: of a model and its heads, the module that contains the stages, which can be the model itself.
        last_stage: of a backbone and the heads, its last stage.
    """

    name: str
    heads: Callable[[nn.Module], Heads] | None = None
    backbone: Callable[[nn.Module, Modules], nn.Module | None] | None = None
    last_stage: Callable[[nn.Module, Modules], Stage | None] | None = None


def _timm_heads(model: nn.Module) -> Heads:
    get_classifier = getattr(model, "get_classifier", None)
    if not callable(get_classifier):
        return {}
    classifier: Any = get_classifier()
    return {"classifier": classifier if isinstance(classifier, tuple) else (classifier,)}


def _timm_backbone(model: nn.Module, heads: Modules) -> nn.Module | None:
    return model if _timm_last_stage(model, heads) else None


def _timm_last_stage(backbone: nn.Module, heads: Modules) -> Stage | None:
    """The module of the last feature, unless it is missing, without layers, or a single layer behind the stages."""
    features = _timm_features(backbone)
    modules = dict(backbone.named_modules())
    declared = str(features[-1]["module"]) if features else ""
    # A model made by features_only=True holds `stages.3` as its child `stages_3`.
    found = [Stage(name, modules[name]) for name in (declared, declared.replace(".", "_")) if name and name in modules]
    valid = (stage for stage in found if [*stage.module.children()] and has_layers(stage.module))
    return next((stage for stage in valid if not overlaps(stage.module, heads)), None)


def _timm_itself(model: nn.Module, _: Modules) -> nn.Module | None:
    """A model with features is a backbone, even if the last one is not a stage."""
    return model if _timm_features(model) else None


def _timm_features(model: nn.Module) -> list[Mapping[str, Any]]:
    """Timm's `feature_info`: a list of mappings, or a FeatureInfo around one, each naming a feature's module."""
    given = getattr(model, "feature_info", None)
    features = getattr(given, "info", given)
    return features if isinstance(features, list) else []


def _transformers_backbone(model: nn.Module, _: Modules) -> nn.Module | None:
    """The child that `base_model_prefix` names; a model without that child is a backbone itself."""
    prefix = getattr(type(model), "base_model_prefix", None)
    return children_with_parameters(model).get(prefix, model) if isinstance(prefix, str) else None


def _resnet_last_stage(backbone: nn.Module, _: Modules) -> Stage | None:
    """`layer4`, however deep it is, or the same stage of a ResNet whose children are in an `nn.Sequential`."""
    for module in backbone.modules():
        children = children_with_parameters(module)
        if "layer4" in children and (module is backbone or "layer3" in children):
            return Stage("layer4", children["layer4"])
        residual = [child for child in children.values() if _is_residual_stage(child)]
        if isinstance(module, nn.Sequential) and len(residual) >= _LEAST_RESIDUAL_STAGES:
            return Stage(f"layer{len(residual)}", residual[-1])
    return None


def _is_residual_stage(module: nn.Module) -> bool:
    blocks = {type(block).__name__ for block in module.children()}
    return isinstance(module, nn.Sequential) and bool(blocks) and blocks <= _RESIDUAL_BLOCKS


def _named_heads(model: nn.Module) -> Heads:
    """All children with a head's name; else those with a similar name; else the one whose name is an output's."""
    children = {
        name.removeprefix("_"): child for name, child in children_with_parameters(model).items() if has_layers(child)
    }
    named = {name: (child,) for name, child in children.items() if name in HEAD_NAMES}
    if not named:
        named = {
            name: (child,)
            for name, child in children.items()
            if _LIKE_A_HEAD.search(name.lower()) and not name.startswith("pre_")
        }
    outputs = {name: (children[name],) for name in _OUTPUT_NAMES if name in children}
    if isinstance(children.get("decoder"), nn.Linear):  # of a language model; others decode with a network
        outputs["decoder"] = (children["decoder"],)
    return named or dict([*outputs.items()][:1])


def _named_backbone(model: nn.Module, _: Modules) -> nn.Module | None:
    children = children_with_parameters(model)
    found = [children[name] for name in BACKBONE_NAMES if name in children]
    return next((child for child in found if not isinstance(child, nn.Embedding)), None)


def _last_of_two(model: nn.Module) -> Heads:
    split = head_and_body(model)
    return {"head": (split[0],)} if split is not None else {}


def _remaining_child(model: nn.Module, heads: Modules) -> nn.Module | None:
    """Beside a head, the only child with stages, or the one whose name says that it is the model."""
    split = head_and_body(model)
    if split is not None:
        return split[1]
    children = stages(model, heads) if heads else {}
    if len(children) == 1:
        (child,) = children.values()
        return None if isinstance(child, LISTS) else child
    return next((children[name] for name in WRAPPED_NAMES if name in children), None)


# In order of trust: what a library declares, what is known, what names say, what the structure suggests.
FAMILIES = (
    Family(name="timm", heads=_timm_heads, backbone=_timm_backbone, last_stage=_timm_last_stage),
    Family(name="transformers", backbone=_transformers_backbone),
    Family(name="ResNet", last_stage=_resnet_last_stage),
    Family(name="names", heads=_named_heads, backbone=_named_backbone),
    Family(name="timm's features", backbone=_timm_itself),
    Family(name="structure", heads=_last_of_two, backbone=_remaining_child, last_stage=last_stage),
)
