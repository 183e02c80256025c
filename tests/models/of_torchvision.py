"""Models of torchvision, without weights."""

from functools import partial
from inspect import signature

import torch
from torch import nn
from torchvision.models import get_model, get_model_builder

from tests.models.known import Known


def build(name: str) -> nn.Module:
    """A model without weights, whose backbone has none either."""
    builder = get_model_builder(name)
    options: dict[str, object] = (
        {"weights_backbone": None} if "weights_backbone" in signature(builder).parameters else {}
    )
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = False  # which would take seconds
    # A RegNet reads a tensor while it is built, which has no value on meta.
    with torch.device("cpu" if name.startswith("regnet") else torch.get_default_device()):
        model: nn.Module = builder(weights=None, **options)
    return model


def build_with_auxiliary_head(name: str) -> nn.Module:
    """A segmentation model whose loss has a second part."""
    model: nn.Module = get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    return model


def with_mlp(name: str, child: str) -> nn.Module:
    """A model whose last layer is replaced by an MLP of two layers."""
    model = build(name)
    head = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    setattr(model, child, head)
    return model


def headless_resnet() -> nn.Module:
    """A ResNet whose last layer is an identity."""
    model: nn.Module = get_model_builder("resnet50")()
    model.fc = nn.Identity()
    return model


CLASSIFIERS = (
    *("alexnet", "convnext_tiny", "convnext_base", "densenet121", "densenet201", "efficientnet_b0", "efficientnet_b7"),
    *("efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small"),
    *("mobilenet_v3_large", "regnet_y_400mf", "regnet_x_400mf", "resnet18", "resnet50", "resnet152"),
    *("resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "swin_v2_b", "vgg11", "vgg16_bn"),
    *("vit_b_16", "vit_l_32", "wide_resnet50_2"),
)
VIDEO = ("mc3_18", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t")
WITH_BACKBONE = (
    *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"),
    *("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"),
    *("fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"),
    *("retinanet_resnet50_fpn_v2", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
)

MODELS = (
    *(Known(f"`{name}`", partial(build, name)) for name in CLASSIFIERS),
    Known("`resnet18`, `fc` an MLP", partial(with_mlp, "resnet18", "fc")),
    Known("`vit_b_16`, `heads` an MLP", partial(with_mlp, "vit_b_16", "heads")),
    Known("`resnet50`, `fc` an identity", headless_resnet),
    *(Known(f"`{name}`", partial(build, name)) for name in VIDEO),
    *(Known(f"`{name}`", partial(build, name)) for name in WITH_BACKBONE),
    Known("`deeplabv3_resnet50`, `aux_loss=True`", partial(build_with_auxiliary_head, "deeplabv3_resnet50")),
)
