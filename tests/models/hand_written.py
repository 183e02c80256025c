"""Models as people write them themselves, around and without those of the libraries."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import convnext_tiny, mobilenet_v2, resnet18, resnet50, vit_b_16

from ava_pipeline.collect.targets import Model
from tests.models import of_timm
from tests.models.known import Known


class Parts(nn.Module):
    """Children by name, in the order given; a stand-in for a class whose `__init__` assigns them."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def mlp() -> nn.Sequential:
    """A head of two linear layers."""
    return nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))


def without_last(model: nn.Module, *more: nn.Module) -> nn.Sequential:
    """The commonest home-made backbone: a model's children without the last one, names lost."""
    return nn.Sequential(*list(model.children())[:-1], *more)


def convolutions(num_in: int, num_out: int) -> nn.Sequential:
    """Two convolutions with their norms, as U-Nets stack them."""
    layers = [(nn.Conv2d(a, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU()) for a in (num_in, num_out)]
    return nn.Sequential(*(layer for triple in layers for layer in triple))


def u_net() -> nn.Module:
    """A U-Net with the names of its most copied implementation."""
    widths = [64, 128, 256, 512, 1024]
    down = {f"down{level}": convolutions(widths[level - 1], widths[level]) for level in range(1, 5)}
    up = {f"up{level}": convolutions(widths[5 - level], widths[4 - level]) for level in range(1, 5)}
    return Parts(inc=convolutions(3, 64), **down, **up, outc=nn.Conv2d(64, 2, 1))


def segmenter() -> nn.Module:
    """An encoder, a decoder and a segmentation head, as segmentation-models-pytorch builds them."""
    encoder = resnet18()
    del encoder.fc
    decoder = Parts(blocks=nn.ModuleList([convolutions(512, 256), convolutions(256, 64)]))
    return Parts(encoder=encoder, decoder=decoder, segmentation_head=nn.Sequential(nn.Conv2d(64, 2, 3), nn.Identity()))


def small_vit() -> nn.Module:
    """A transformer with the names of the most copied small implementation."""
    blocks = [nn.ModuleList([nn.MultiheadAttention(64, 4), mlp()]) for _ in range(6)]
    transformer = Parts(norm=nn.LayerNorm(64), layers=nn.ModuleList(blocks))
    embedding = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.LayerNorm(64))
    return Parts(to_patch_embedding=embedding, transformer=transformer, mlp_head=nn.Linear(64, 10))


def plain_net() -> nn.Module:
    """Layers that nothing calls a backbone or a head."""
    return Parts(conv1=nn.Conv2d(3, 8, 3), conv2=nn.Conv2d(8, 8, 3), fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 10))


def language_model(**body: nn.Module) -> nn.Module:
    """The names of PyTorch's own example: the encoder embeds, the decoder is the last layer."""
    return Parts(encoder=nn.Embedding(100, 64), **body, decoder=nn.Linear(64, 100))


def transformer_encoder() -> nn.Module:
    """Six layers."""
    layer = nn.TransformerEncoderLayer(64, 4, batch_first=True)
    return nn.TransformerEncoder(layer, 6)


def llama_like() -> nn.Module:
    """The names of the reference implementation of Llama."""
    blocks = [Parts(attention=nn.MultiheadAttention(64, 4), feed_forward=mlp()) for _ in range(4)]
    return Parts(
        tok_embeddings=nn.Embedding(100, 64),
        layers=nn.ModuleList(blocks),
        norm=nn.LayerNorm(64),
        output=nn.Linear(64, 100),
    )


def cifar_resnet() -> nn.Module:
    """A ResNet with the names of the most copied implementation for CIFAR."""
    stages = {f"layer{number}": convolutions(64, 64) for number in range(1, 5)}
    return Parts(conv1=nn.Conv2d(3, 64, 3), bn1=nn.BatchNorm2d(64), **stages, linear=nn.Linear(64, 10))


def underscored() -> nn.Module:
    """The names of efficientnet-pytorch."""
    blocks = nn.ModuleList([convolutions(16, 16) for _ in range(5)])
    return Parts(_conv_stem=nn.Conv2d(3, 16, 3), _blocks=blocks, _conv_head=nn.Conv2d(16, 64, 1), _fc=nn.Linear(64, 10))


def gan() -> list[nn.Module]:
    """Two modules with the same names."""
    generator = Parts(main=nn.Sequential(nn.ConvTranspose2d(64, 32, 4), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4)))
    discriminator = Parts(main=nn.Sequential(nn.Conv2d(3, 32, 4), nn.LeakyReLU(), nn.Conv2d(32, 1, 4)))
    return [generator, discriminator]


def pipeline_chunks() -> list[nn.Module]:
    """A ResNet cut in two by deleting children from copies."""
    first, second = resnet18(), resnet18()
    for name in ("layer3", "layer4", "fc"):
        delattr(first, name)
    for name in ("conv1", "bn1", "layer1", "layer2"):
        delattr(second, name)
    return [first, second]


def lightning_module(**children: Callable[[], nn.Module]) -> nn.Module:
    """A LightningModule with these children."""
    import lightning  # noqa: PLC0415  # not everyone who runs the tests has it

    class Module(lightning.LightningModule):  # type: ignore[misc]  # mypy reads no library of models
        def __init__(self) -> None:
            super().__init__()
            for name, build in children.items():
                setattr(self, name, build())

    module: nn.Module = Module()
    return module


def with_lora() -> nn.Module:
    """A transformer of which PEFT trains LoRA matrices and the classifier."""
    import peft  # noqa: PLC0415  # not everyone who runs the tests has it
    import transformers  # noqa: PLC0415

    model = transformers.ViTForImageClassification(transformers.ViTConfig())
    config = peft.LoraConfig(target_modules=r".*(query|q_proj)", modules_to_save=["classifier"])
    lora: nn.Module = peft.get_peft_model(model, config)
    return lora


def smp(name: str, encoder: str) -> nn.Module:
    """A model of segmentation-models-pytorch."""
    import segmentation_models_pytorch  # noqa: PLC0415  # not everyone who runs the tests has it

    model: nn.Module = getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=2)
    return model


def headless_resnet18() -> nn.Module:
    """A ResNet-18 whose last layer is an identity."""
    model: nn.Module = resnet18()
    model.fc = nn.Identity()
    return model


def compiled(model: nn.Module) -> nn.Module:
    """A module that `torch.compile` wraps and does not compile before it is called."""
    wrapped: Any = torch.compile(model)
    module: nn.Module = wrapped
    return module


def timm_body(**options: Any) -> nn.Module:
    """A ConvNeXt without its last layer."""
    return of_timm.build("convnext_tiny", num_classes=0, **options)


def row(text: str, build: Callable[[], Model], *libraries: str) -> Known:
    """One row, named by what such a model has."""
    return Known(text, build, libraries)


MODELS = (
    row(
        "`backbone`: ResNet-18 with `fc` an identity, `mlp_head`",
        lambda: Parts(backbone=headless_resnet18(), mlp_head=mlp()),
    ),
    row(
        "`backbone = nn.Sequential(*list(resnet50().children())[:-1], nn.Flatten())`, `mlp_head`",
        lambda: Parts(backbone=without_last(resnet50(), nn.Flatten()), mlp_head=mlp()),
    ),
    row(
        "`cnn = nn.Sequential(*list(resnet18().children())[:-2])`, `regressor`",
        lambda: Parts(cnn=nn.Sequential(*list(resnet18().children())[:-2]), regressor=nn.Linear(512, 1)),
    ),
    row(
        "`backbone = nn.Sequential(*list(convnext_tiny().children())[:-1])`, `head`",
        lambda: Parts(backbone=without_last(convnext_tiny()), head=nn.Linear(768, 10)),
    ),
    row(
        "`features = mobilenet_v2().features`, `classifier`",
        lambda: Parts(features=mobilenet_v2().features, classifier=nn.Linear(1280, 10)),
    ),
    row("`vit = vit_b_16()`, `head`", lambda: Parts(vit=vit_b_16(), head=nn.Linear(1000, 10))),
    row("`nn.Sequential(body, head)` of a ResNet and an MLP", lambda: nn.Sequential(without_last(resnet18()), mlp())),
    row("`model`: a ResNet-18, and a loss with parameters", lambda: Parts(model=resnet18(), loss=nn.Linear(10, 10))),
    row("`net`: a timm model, `head`", lambda: Parts(net=timm_body(), head=mlp()), "timm"),
    row("`backbone`: a timm model, `score_head`", lambda: Parts(backbone=timm_body(), score_head=mlp()), "timm"),
    row(
        "`backbone`: a timm model with `features_only=True`, `head`",
        lambda: Parts(backbone=of_timm.build("convnext_tiny", features_only=True), head=nn.Linear(768, 10)),
        "timm",
    ),
    row("`encoder`: a whole timm model", lambda: Parts(encoder=of_timm.build("vit_base_patch16_224")), "timm"),
    row(
        "`encoder`, `quality_head`, `style_head`",
        lambda: Parts(encoder=resnet18(), quality_head=nn.Linear(512, 10), style_head=mlp()),
    ),
    row("`backbone`, `out`", lambda: Parts(backbone=resnet18(), out=nn.Linear(512, 1))),
    row("`backbone`, `predictor` that contains an MLP", lambda: Parts(backbone=resnet18(), predictor=Parts(net=mlp()))),
    row(
        "`nn.DataParallel` inside: `net = nn.DataParallel(resnet50())`", lambda: Parts(net=nn.DataParallel(resnet50()))
    ),
    row("`torch.compile` inside: `backbone`, `head`", lambda: Parts(backbone=compiled(resnet18()), head=mlp())),
    row("ResNet for CIFAR: `layer1` … `layer4`, `linear`", cifar_resnet),
    row("EfficientNet with `_blocks`, `_conv_head`, `_fc`", underscored),
    row("ViT with `transformer`, `mlp_head`", small_vit),
    row("Llama with `layers`, `norm`, `output`", llama_like),
    row(
        "language model: `encoder` (embedding), `transformer_encoder`, `decoder` (linear)",
        lambda: language_model(transformer_encoder=transformer_encoder()),
    ),
    row(
        "language model: `encoder` (embedding), `rnn`, `decoder` (linear)", lambda: language_model(rnn=nn.LSTM(64, 64))
    ),
    row("`lstm`, `fc`", lambda: Parts(lstm=nn.LSTM(64, 64), fc=nn.Linear(64, 10))),
    row("U-Net: `inc`, `down1` …, `up1` …, `outc`", u_net),
    row("`encoder`, `decoder`, `segmentation_head`", segmenter),
    row("`conv1`, `conv2`, `fc1`, `fc2`", plain_net),
    row("plain `nn.Sequential` of layers", mlp),
    row("GAN: a list of two modules with the same names", gan),
    row("pipeline: a list of the chunks of a ResNet", pipeline_chunks),
    row("LightningModule with `net`", partial(lightning_module, net=resnet18), "lightning"),
    row("LightningModule with `model`, `head`", partial(lightning_module, model=resnet18, head=mlp), "lightning"),
    row("PEFT: LoRA in a `ViTForImageClassification`", with_lora, "peft", "transformers"),
    row("segmentation-models-pytorch: `Unet`", partial(smp, "Unet", "resnet34"), "segmentation_models_pytorch"),
    row("segmentation-models-pytorch: `FPN`", partial(smp, "FPN", "mobilenet_v2"), "segmentation_models_pytorch"),
)
