"""Build runs for reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.report.page import write_report
from tests.validate.building import NORMS, NOW, RATES, STEPS, Row, RunBuilder
from tests.validate.more_tables import labels, layers, pairs, weights

SPIKE, SPIKE_AT = 1e9, 500_000
NAN, INF = float("nan"), float("inf")
NAMES = ("stem.weight", "layer4.weight", "head.0.weight", "head.3.weight")


def every_batch() -> list[Attempt]:
    """An attempt that collected every batch."""
    return [Attempt(number=1, started_utc=NOW, collect_every_n=1)]


def healthy(root: Path) -> Path:
    """A finished run of three epochs."""
    return RunBuilder(root=root, batches=range(1, 121), attempts=every_batch()).write()


def faulty(root: Path) -> Path:
    """A run with a dead backbone, a dead layer, nan and inf, a spike, nulls and missing rows."""
    norms: dict[int, Row] = {batch: {"backbone_layer4": 1e-9} for batch in range(1, 61)}
    norms |= {70: {"overall": NAN, "mlp_head": INF}, 80: {"overall": 1e6}}
    norms |= {batch: {"mlp_layer_0": None} for batch in range(90, 100)}
    norms |= {batch: {"mlp_layer_3": 0.0} for batch in range(62, 68)}
    batches = [batch for batch in range(1, 121) if not 100 < batch < 110]
    return RunBuilder(root=root, batches=batches, norms=norms, attempts=every_batch()).write()


def crashed(root: Path) -> Path:
    """A run that was killed: its rows are in the journals, and the last line of the CSV file is torn."""
    RunBuilder(root=root, batches=range(1, 61), status="running", attempts=every_batch()).write()
    with RunLayout(root).csv("gradient_norms").open("ab") as file:
        file.write(b"61,1,0.2")
    return root


def empty(root: Path) -> Path:
    """A run that ended before its first row."""
    builder = RunBuilder(root=root, batches=())
    builder.layout.telemetry.mkdir(parents=True)
    builder.write_manifest()
    return root


def long(root: Path, num_rows: int = 1_000_000) -> Path:
    """A long run in Parquet only, with a row for each batch and one spike."""
    builder = RunBuilder(root=root, batches=range(1, num_rows + 1), formats=("parquet",), attempts=every_batch())
    rng, batches = np.random.default_rng(0), np.arange(1, num_rows + 1)
    keys: dict[str, Any] = {"batch_idx": batches, "epoch": batches * 10 // (num_rows + 1)}
    first, last, backbone, other = rng.lognormal(sigma=0.3, size=(4, num_rows)).astype(np.float32)
    other[SPIKE_AT % num_rows] = SPIKE
    head = np.hypot(first, last)
    norms: dict[str, Any] = dict(
        zip(
            NORMS.run_column_names,
            (np.hypot(np.hypot(head, backbone), other), backbone, head, first, last),
            strict=True,
        )
    )
    rates: dict[str, Any] = {"lr_group_0": np.full(num_rows, 1e-4), "lr_group_1": np.full(num_rows, 1e-3)}
    times = pa.array(np.datetime64(NOW.replace(tzinfo=None), "us") + batches * 100_000, pa.timestamp("us", "UTC"))
    steps: dict[str, Any] = {
        "time_utc": times,
        "loss_scale": pa.nulls(num_rows, pa.float64()),
        "loss": 1 / np.sqrt(batches),
    }
    for table, columns in ((NORMS, norms), (RATES, rates), (STEPS, steps)):
        write_parquet(builder.layout.parquet(table.table.name), pa.table(keys | columns, schema=table.arrow_schema))
    builder.write_predictions()
    builder.write_manifest()
    return root


def everything(root: Path, batches: Sequence[int] = range(1, 121)) -> Path:
    """A run that records weights, layers, labels and held-out samples too."""
    num = len(batches)
    rng = np.random.default_rng(0)
    more = [
        *weights(batches),
        layers(batches, rng.lognormal(size=(num, len(NAMES))), NAMES),
        labels(batches, rng.binomial(32, 0.5, num)),
        pairs(batches, rng.normal(size=(num, 6, 2))),
    ]
    return RunBuilder(root=root, batches=batches, more=more, attempts=every_batch()).write()


BUILDERS = {
    "healthy": healthy,
    "everything": everything,
    "faulty": faulty,
    "crashed": crashed,
    "empty": empty,
    "long": long,
}


def report(path: Path, *patterns: Path | str) -> Path:
    """Write a report of runs and return its path."""
    write_report(patterns, path)
    return path
