"""Compares clipping through a collector with torch's own, on any device."""

from copy import deepcopy
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector

MAX_NORM = 0.05
INFINITE, NOT_A_NUMBER = float("inf"), float("nan")


def assert_clips_to_torchs_bits(folder: Path, monkeypatch: pytest.MonkeyPatch, model: nn.Module, number: float) -> None:
    """Clip four batches' gradients both ways, one of them with that number among them.

    Totals and gradients have the same bits, and from the second batch on torch's own pass is not made again.
    """
    reference, torchs = deepcopy(model), nn.utils.clip_grad_norm_
    counted = Mock(wraps=torchs)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", counted)
    with TelemetryCollector(model, torch.optim.SGD(model.parameters()), folder, collect_every_n=1) as telemetry:
        for batch, special in enumerate((1.0, 1.0, number, 1.0)):
            for one in (model, reference):
                _give_gradients(one, batch, special)
            telemetry.step()
            _assert_same_bits(telemetry.clip_grad_norm_(MAX_NORM), torchs(reference.parameters(), MAX_NORM))
            for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
                _assert_same_bits(ours.grad, theirs.grad)
    assert counted.call_count == 1  # the first clip: before it the collector does not know that the loop clips


def _give_gradients(model: nn.Module, seed: int, special: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=draw)
        gradient.flatten()[0] = special
        parameter.grad = gradient.to(parameter.device)


def _assert_same_bits(one: Tensor | None, other: Tensor | None) -> None:
    assert one is not None
    assert other is not None
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))
