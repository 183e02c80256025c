"""Models of timm, without weights."""

from functools import partial
from typing import Any

from torch import nn

from tests.models.known import Known


def build(name: str, **options: Any) -> nn.Module:
    """A model of timm's registry."""
    import timm  # noqa: PLC0415  # not everyone who runs the tests has it

    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def with_own_head(name: str) -> nn.Module:
    """A model whose child `head` is replaced, so that `get_classifier()` may fail."""
    model = build(name)
    model.head = nn.Sequential(nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 10))
    return model


NAMES = """
    beit_base_patch16_224 caformer_s18 coat_tiny coatnet_0_rw_224 convmixer_768_32 convnext_tiny
    convnextv2_atto cspdarknet53 davit_tiny deit3_small_patch16_224 densenet121 dla34 dpn68
    edgenext_small efficientformer_l1 efficientnet_b0 efficientvit_b0 eva02_base_patch14_448
    fastvit_t8 focalnet_tiny_srf ghostnet_100 hgnet_tiny hiera_tiny_224 hrnet_w18
    inception_resnet_v2 inception_v4 maxvit_tiny_tf_224 mixer_b16_224 mobilenetv3_large_100
    mobilenetv4_conv_small mobileone_s0 mobilevit_s dm_nfnet_f0 pit_s_224 poolformer_s12 pvt_v2_b0
    regnety_016 repvgg_a0 res2net50_26w_4s resnest14d resnet50 resnetv2_50 rexnet_100 selecsls42b
    seresnet50 swin_tiny_patch4_window7_224 tnt_s_patch16_224 tresnet_m twins_svt_small vgg16
    vit_base_patch16_224 vit_base_patch16_siglip_224 volo_d1_224 vovnet39a xception41
    legacy_xception xcit_nano_12_p16_224 deit_base_distilled_patch16_224 efficientformerv2_s0
    levit_128
"""

MODELS = (
    *(Known(f"`{name}`", partial(build, name), ("timm",)) for name in NAMES.split()),
    *(
        Known(f"`{name}`, `head` replaced by an MLP", partial(with_own_head, name), ("timm",))
        for name in ("convnext_tiny", "dm_nfnet_f0", "regnety_016", "swin_tiny_patch4_window7_224")
    ),
    *(
        Known(f"`{name}`, `features_only=True`", partial(build, name, features_only=True), ("timm",))
        for name in ("convnext_tiny", "densenet121", "efficientnet_b0", "resnet50", "vit_base_patch16_224")
    ),
    *(
        Known(f"`{name}`, `num_classes=0`", partial(build, name, num_classes=0), ("timm",))
        for name in ("convnext_tiny", "densenet121", "resnet50", "vgg16", "vit_base_patch16_224")
    ),
)
