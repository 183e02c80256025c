"""Faults that are put into a training, and the signs that should find them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.diagnosis.network import NUM_VOTES, TinyResNet
from benchmarks.diagnosis.settings import AT, Setting

# A training that diverges shows one of these signs; which one depends on the optimizer and the network.
DIVERGING = ("exploding", "non-finite", "rising", "loss-rising", "spike", "vanishing", "dead-layer")


def _same_setting(setting: Setting) -> Setting:
    return setting


def _same_batch(images: Tensor, truth: Tensor, step: int, setting: Setting) -> tuple[Tensor, Tensor]:  # noqa: ARG001  # one signature for all faults
    return images, truth


def _same_loss(loss: Tensor, step: int, setting: Setting) -> Tensor:  # noqa: ARG001
    return loss


def _nothing(model: TinyResNet, optimizer: Optimizer) -> None:
    """Change nothing."""


def _no_change(optimizer: Optimizer, step: int) -> None:
    """Keep the rates that the schedule set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: name of the fault.
        signs: any of these signs counts as finding it; empty for a healthy training.
        found_as_info: a sign of severity info that must be found.
        at: the batch that must be named; None for a lasting fault.
        setting: changes the settings.
        batch: changes a batch, given the 1-based step.
        loss: changes the loss that is differentiated and recorded.
        model: changes model and optimizer before the first step.
        rates: changes the rates of a step, after the schedule.
        activation: of the head.
        is_half: trained under float16 autocast with a GradScaler.
        init_scale: what the GradScaler begins with.
        clips_before_step: gradients are clipped before they are recorded, not after.
        telemetry: further settings of the collector.
    """

    name: str
    signs: tuple[str, ...] = ()
    found_as_info: str | None = None
    at: int | None = None
    setting: Callable[[Setting], Setting] = _same_setting
    batch: Callable[[Tensor, Tensor, int, Setting], tuple[Tensor, Tensor]] = _same_batch
    loss: Callable[[Tensor, int, Setting], Tensor] = _same_loss
    model: Callable[[TinyResNet, Optimizer], None] = _nothing
    rates: Callable[[Optimizer, int], None] = _no_change
    activation: type[nn.Module] = nn.ReLU
    is_half: bool = False
    init_scale: float = 2.0**16
    clips_before_step: bool = False
    telemetry: Mapping[str, Any] = field(default_factory=dict)


def _freeze(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001  # one signature for all faults
    model.get_submodule("layer4").requires_grad_(requires_grad=False)


def _detach(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    model.is_detached = True


def _saturate(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    for layer in model.fc:
        if isinstance(layer, nn.Linear) and layer is not model.fc[-1]:
            nn.init.normal_(layer.weight, std=100.0)


def _kill(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    first = model.fc[0]
    if isinstance(first, nn.Linear):
        nn.init.constant_(first.bias, -100.0)


def _forget_backbone(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    optimizer.param_groups[:] = optimizer.param_groups[1:]


def _enlarge(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.mul_(4.0)


def _overflow(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    model.conv1.weight.data.mul_(1e6)


def _poison(images: Tensor, truth: Tensor, step: int, setting: Setting) -> tuple[Tensor, Tensor]:
    """Put votes that are not divided by their number, or images that are not normalised, into one batch."""
    if step != AT:
        return images, truth
    return (images, truth * NUM_VOTES) if setting.norm != "none" else (images * 1e3, truth)


def _nan_label(images: Tensor, truth: Tensor, step: int, setting: Setting) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    if step == AT:
        truth = truth.clone()
        truth[0] = torch.nan
    return images, truth


def _not_normalised(images: Tensor, truth: Tensor, step: int, setting: Setting) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return images * 8192 + 32768, truth  # 16-bit images without scaling


def _noisy_labels(images: Tensor, truth: Tensor, step: int, setting: Setting) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(setting.seed * 7 + step)
    return images, truth[torch.randperm(len(truth), generator=random)]


def _times(factor: float, since: int = 0) -> Callable[[Tensor, int, Setting], Tensor]:
    def change(loss: Tensor, step: int, setting: Setting) -> Tensor:  # noqa: ARG001
        return loss.mul(factor) if step >= since else loss

    return change


def _weigh_more(loss: Tensor, step: int, setting: Setting) -> Tensor:
    """Multiply the loss by a weight that grows fiftyfold, by the same factor at each step."""
    return loss.mul(50.0 ** (step / setting.num_steps))


def _hold_back(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    model.feature_gradient = 0.015


def _maximise(model: TinyResNet, optimizer: Optimizer) -> None:  # noqa: ARG001
    for group in optimizer.param_groups:
        group["maximize"] = True


def _scaled_rates(group: int, factor: float, since: int = 0) -> Callable[[Optimizer, int], None]:
    def change(optimizer: Optimizer, step: int) -> None:
        if step >= since:
            optimizer.param_groups[group]["lr"] *= factor

    return change


def _jump(optimizer: Optimizer, step: int) -> None:
    if step >= AT:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * 100


FAULTS: tuple[Fault, ...] = (
    Fault(name="frozen layer4", found_as_info="frozen", model=_freeze),
    Fault(name="features detached", signs=("backbone-not-learning",), model=_detach),
    Fault(
        name="saturating head",
        signs=("backbone-not-learning", "head-dominating", "dead-layer"),
        model=_saturate,
        activation=nn.Sigmoid,
    ),
    Fault(name="dead ReLU layer", signs=("dead-layer",), model=_kill),
    Fault(
        name="learning rate 1000×",
        signs=DIVERGING,
        setting=lambda setting: replace(setting, lr=setting.lr * 1000),
    ),
    Fault(name="poisoned batch: votes not normalised", signs=("spike",), at=AT, batch=_poison),
    Fault(
        name="poisoned batch: images not normalised",
        signs=("spike",),
        at=AT,
        batch=_poison,
        setting=lambda setting: replace(setting, norm="none"),
    ),
    Fault(name="NaN label", signs=("non-finite",), at=AT, batch=_nan_label),
    Fault(name="wrong loss sign", signs=("loss-negative", "loss-rising"), loss=_times(-1.0)),
    Fault(
        name="no normalisation",
        signs=(*DIVERGING, "backbone-not-learning", "head-dominating"),
        batch=_not_normalised,
        setting=lambda setting: replace(setting, norm="none"),
    ),
    Fault(name="backbone at learning rate 0", signs=("learning-rate-zero",), rates=_scaled_rates(0, 0.0)),
    Fault(name="label noise only", batch=_noisy_labels),
    Fault(
        name="fp16 overflow",
        signs=("non-finite", "loss-scale-collapse"),
        model=_overflow,
        is_half=True,
        setting=lambda setting: replace(setting, norm="none"),
    ),
    Fault(
        name="initial weights 4×, no norm",
        signs=(*DIVERGING, "backbone-not-learning", "head-dominating"),
        model=_enlarge,
        setting=lambda setting: replace(setting, norm="none"),
    ),
    Fault(name="loss 1e-8×", signs=("vanishing",), loss=_times(1e-8)),
    Fault(name="learning rate leaps 100×", signs=("learning-rate-jump",), rates=_jump, at=AT),
    Fault(
        name="head slower than the backbone",
        signs=("learning-rate-order",),
        rates=_scaled_rates(1, 0.01),
        telemetry={"signs": {"head_rate_above": True}},
    ),
    Fault(name="backbone in no optimizer", signs=("not-optimized",), model=_forget_backbone),
    Fault(
        name="clipped at every step",
        signs=("clipping-often",),
        setting=lambda setting: replace(setting, clip_norm=1e-4),
    ),
    Fault(
        name="clipped before step",
        signs=("clipped-before-step",),
        setting=lambda setting: replace(setting, clip_norm=0.03),
        clips_before_step=True,
    ),
    Fault(
        name="feature gradients 0.015×",
        signs=("head-dominating",),
        model=_hold_back,
        setting=lambda setting: replace(setting, norm="batch", hidden=(32,)),
    ),
    Fault(
        name="loss 1000× from one batch on",
        signs=("exploding",),
        loss=_times(1000.0, since=AT),
        setting=lambda setting: replace(setting, clip_norm=1.0),
    ),
    Fault(
        name="loss weight grows without end",
        signs=("rising",),
        loss=_weigh_more,
        setting=lambda setting: replace(setting, lr=setting.lr / 100),
    ),
    Fault(
        name="loss maximised",
        signs=("loss-rising",),
        model=_maximise,
        setting=lambda setting: replace(setting, optimizer="rmsprop", lr=1e-4, schedule="constant", head_lr_mult=1.0),
    ),
    Fault(name="rows dropped", signs=("telemetry-gap",), telemetry={"max_pending_rows": 1}),
)
HEALTHY = Fault(name="healthy")
HEALTHY_HALF = Fault(name="healthy, fp16", is_half=True)
# Its GradScaler looks for a scale that fits through the first dozen steps and more.
HEALTHY_SEARCH = Fault(name="healthy, fp16, init_scale too high", is_half=True, init_scale=2.0**36)
