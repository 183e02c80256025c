"""Runs to compare: small trainings that record everything, and tables that are added to runs without training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from ava_pipeline import TelemetryCollector
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import TableEntry, read_manifest, write_manifest
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.contract.tables import RunTable
from tests.collect.models import TinyNet, backward, tiny

Change = Callable[[int, TinyNet, torch.optim.Optimizer], None]


def unchanged(_batch: int, _model: TinyNet, _optimizer: torch.optim.Optimizer) -> None:
    """The training as it is."""


def trained(
    root: Path,
    batches: range,
    change: Change = unchanged,
    *,
    seed: int = 0,
    resumed: Sequence[int] = (),
    **options: object,
) -> Path:
    """A run of TinyNet, with a learning rate of 1e-3.

    Args:
        root: the run directory.
        batches: their numbers, from 1.
        change: called before each batch.
        seed: of the batches; it is in the run's `run_info`.
        resumed: batches after which the process is replaced, with the state of the collector.
        options: of the collector.
    """
    model, optimizer = tiny()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    collector = partial(
        TelemetryCollector, model, optimizer, root, {"collect_every_n": 1, **options}, run_info={"seed": seed}
    )
    telemetry = collector()
    for batch in batches:
        change(batch, model, optimizer)
        optimizer.zero_grad()
        loss = backward(model, seed=batch + 10_000 * seed)
        telemetry.step(values={"loss": loss})
        optimizer.step()
        if batch in resumed:
            state = telemetry.state_dict()
            telemetry.close()
            telemetry = collector()
            telemetry.load_state_dict(state)
    telemetry.close()
    return root


def add_table(root: Path, declared: RunTable, columns: Mapping[str, Sequence[object]]) -> None:
    """Give a finished run one more table, as Parquet."""
    layout, name = RunLayout(root), declared.table.name
    manifest = read_manifest(layout.manifest)
    manifest.tables[name] = TableEntry(declaration=declared, formats=("parquet",))
    write_manifest(layout.manifest, manifest)
    write_parquet(layout.parquet(name), pa.table(dict(columns), schema=declared.arrow_schema))
