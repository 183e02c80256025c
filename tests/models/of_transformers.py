"""Models of transformers, made from configs that are small where the default is not."""

from functools import partial
from typing import Any

from torch import nn

from tests.models.known import Known


def build(architecture: str, config: str, **options: Any) -> nn.Module:
    """A model by the names of its class and of its config's class."""
    import transformers  # noqa: PLC0415  # not everyone who runs the tests has it

    model: nn.Module = getattr(transformers, architecture)(getattr(transformers, config)(**options))
    return model


def with_backbone(architecture: str, config: str, own: str, /, **options: Any) -> nn.Module:
    """A detector or segmenter around a backbone of transformers, not of timm."""
    import transformers  # noqa: PLC0415  # not everyone who runs the tests has it

    names = [f"stage{number}" for number in range(1, 5)]
    backbone_config = getattr(transformers, own)(out_features=names)
    return build(architecture, config, backbone_config=backbone_config, **options)


def known(architecture: str, config: str, **options: Any) -> Known:
    """One row."""
    return Known(f"`{architecture}`", partial(build, architecture, config, **options), ("transformers",))


SHORT_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
}

MODELS = (
    known("ViTForImageClassification", "ViTConfig"),
    known("ViTModel", "ViTConfig"),
    known("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    known("BeitForImageClassification", "BeitConfig"),
    known("SwinForImageClassification", "SwinConfig"),
    known("Swinv2ForImageClassification", "Swinv2Config"),
    known("ConvNextForImageClassification", "ConvNextConfig"),
    known("ConvNextV2ForImageClassification", "ConvNextV2Config"),
    known("Dinov2ForImageClassification", "Dinov2Config"),
    known("Dinov2Model", "Dinov2Config"),
    known("ResNetForImageClassification", "ResNetConfig"),
    known("RegNetForImageClassification", "RegNetConfig"),
    known("EfficientNetForImageClassification", "EfficientNetConfig"),
    known("MobileViTForImageClassification", "MobileViTConfig"),
    known("PvtV2ForImageClassification", "PvtV2Config"),
    known("CLIPVisionModel", "CLIPVisionConfig"),
    known("CLIPVisionModelWithProjection", "CLIPVisionConfig"),
    known("CLIPForImageClassification", "CLIPConfig"),
    known("CLIPModel", "CLIPConfig"),
    known("SiglipVisionModel", "SiglipVisionConfig"),
    known("SegformerForImageClassification", "SegformerConfig"),
    known("SegformerForSemanticSegmentation", "SegformerConfig"),
    known("DPTForDepthEstimation", "DPTConfig"),
    known("YolosForObjectDetection", "YolosConfig"),
    Known(
        "`DetrForObjectDetection` on a ResNet",
        partial(
            with_backbone,
            "DetrForObjectDetection",
            "DetrConfig",
            "ResNetConfig",
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
        ),
        ("transformers",),
    ),
    Known(
        "`UperNetForSemanticSegmentation` on a Swin",
        partial(with_backbone, "UperNetForSemanticSegmentation", "UperNetConfig", "SwinConfig"),
        ("transformers",),
    ),
    known("BertForSequenceClassification", "BertConfig"),
    known("BertForMaskedLM", "BertConfig"),
    known("RobertaForSequenceClassification", "RobertaConfig"),
    known("DistilBertForSequenceClassification", "DistilBertConfig"),
    known("BertForQuestionAnswering", "BertConfig"),
    known("GPT2LMHeadModel", "GPT2Config"),
    known("OPTForCausalLM", "OPTConfig"),
    known("LlamaForCausalLM", "LlamaConfig", **SHORT_LLAMA),
    known("LlamaForSequenceClassification", "LlamaConfig", **SHORT_LLAMA),
    known("T5ForConditionalGeneration", "T5Config"),
    known("BartForConditionalGeneration", "BartConfig"),
    known("WhisperForConditionalGeneration", "WhisperConfig"),
    known("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config"),
)
