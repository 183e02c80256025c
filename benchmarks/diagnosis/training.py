"""One small but real training with telemetry."""

import math
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from ava_pipeline import TelemetryCollector
from benchmarks.diagnosis.faults import Fault
from benchmarks.diagnosis.network import TinyResNet, batch_of, emd
from benchmarks.diagnosis.settings import Setting

STEPS_PER_EPOCH = 40
_WARM_UP = 30


def train(fault: Fault, setting: Setting, folder: Path) -> None:
    """Train into a run directory with a fault."""
    setting = fault.setting(setting)
    torch.manual_seed(setting.seed)
    model = TinyResNet(setting, fault.activation)
    optimizer = _optimizer(model, setting)
    fault.model(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=fault.init_scale) if fault.is_half else None
    with TelemetryCollector(
        model, optimizer, folder, collect_every_n=1, grad_scaler=scaler, **fault.telemetry
    ) as telemetry:
        for step in range(1, setting.num_steps + 1):
            _set_rates(optimizer, setting, step)
            fault.rates(optimizer, step)
            _step(model, optimizer, scaler, telemetry, fault, setting, step)


def _step(  # noqa: PLR0913, PLR0917  # one step of a training needs all of these
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
    telemetry: TelemetryCollector,
    fault: Fault,
    setting: Setting,
    step: int,
) -> None:
    images, truth = fault.batch(*batch_of(setting, step), step, setting)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16, enabled=scaler is not None):
        logits = model(images)
    loss = fault.loss(emd(logits, truth), step, setting)
    torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
    if fault.clips_before_step and setting.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), setting.clip_norm)
    ids = [f"image-{step}-{number}" for number in range(setting.batch_size)]
    telemetry.step((step - 1) // STEPS_PER_EPOCH, values={"loss": loss.detach()}, sample_ids=ids)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
        return
    if setting.clip_norm is not None and not fault.clips_before_step:
        telemetry.clip_grad_norm_(setting.clip_norm)
    if torch.isfinite(loss):
        optimizer.step()


def _optimizer(model: TinyResNet, setting: Setting) -> Optimizer:
    head = list(model.fc.parameters())
    known = {id(parameter) for parameter in head}
    backbone = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [
        {"params": backbone, "lr": setting.lr, "initial_lr": setting.lr},
        {"params": head, "lr": setting.lr * setting.head_lr_mult, "initial_lr": setting.lr * setting.head_lr_mult},
    ]
    if setting.optimizer == "sgd":
        return SGD(groups, lr=setting.lr, momentum=0.9)
    kinds: dict[str, type[Adam | AdamW | RMSprop]] = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}
    return kinds[setting.optimizer](groups, lr=setting.lr)


def _set_rates(optimizer: Optimizer, setting: Setting, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * _factor(setting, (step - 1) / setting.num_steps, step)


def _factor(setting: Setting, done: float, step: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    match setting.schedule:
        case "constant":
            return 1.0
        case "cosine":
            return cosine
        case "warmup":
            return min(1.0, step / _WARM_UP) * cosine
        case "step":
            return 0.1 ** int(3 * done)
        case "one-cycle":
            return 0.04 + 0.96 * (done / 0.3 if done < 0.3 else 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7)))
        case "restarts":
            return 0.5 * (1 + math.cos(math.pi * ((3 * done) % 1.0)))
