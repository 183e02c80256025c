"""Trains models with random gradients, and keeps what their weights were at each row, in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.collect.targets import named_parameters

Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """Every parameter as it is, in float64."""
    return {name: parameter.detach().clone().double() for name, parameter in named_parameters(model).items()}


def update(model: nn.Module, batch: int) -> None:
    """Move every parameter that is trained, seeded by the number of the batch."""
    generator = torch.Generator().manual_seed(batch)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                change = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((0.05 * change).to(parameter.dtype))


def train(telemetry: TelemetryCollector, model: nn.Module, batches: Sequence[int]) -> list[Weights]:
    """Run batches, each of which moves the weights after `step`; return the weights of each row."""
    rows = []
    for batch in batches:
        before = weights_of(model)
        if telemetry.step():
            rows.append(before)
        update(model, batch)
    return rows


def collector(model: nn.Module, root: Path, **options: Any) -> TelemetryCollector:
    """A collector of the weights that raises whatever goes wrong."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"collect_every_n": 1, "track_weight_delta": True, "on_error": "raise", **options}
    return TelemetryCollector(model, optimizer, root, given)


def norms(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Every group's norm."""
    return {
        column: float(torch.cat([weights[name].reshape(-1) for name in group.parameters]).norm())
        for column, group in find_groups(model).items()
    }


def deltas(model: nn.Module, weights: Weights, before: Weights) -> dict[str, float]:
    """The norm of every group's difference from an earlier row."""
    return norms(model, {name: weights[name] - before[name] for name in weights})


def table(root: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a table as they are in its Parquet file, None for null."""
    rows: list[dict[str, Any]] = pq.read_table(root / "telemetry" / f"{name}.parquet").to_pylist()
    return rows
