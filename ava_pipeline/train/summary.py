"""The summary that `ava-pipeline train` prints at its end."""

import csv
import signal
from collections.abc import Iterator

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.terminal import add_metrics, metrics_table, plain_table, rounded
from ava_pipeline.train.batch_step import Costs
from ava_pipeline.train.job import Outcome

_NORMS = "gradient_norms"


def show_summary(outcome: Outcome, console: Console) -> None:
    """Print the epochs beside the constant predictor, the last norms, telemetry's cost, the files and what is next."""
    if outcome.results:
        console.print(_epochs(outcome))
    norms = last_norms(outcome.layout)
    if norms:
        console.print(_norms(norms, generated=outcome.generated))
    for line in _lines(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def last_norms(layout: RunLayout) -> dict[str, str]:
    """Column -> value of the last row of gradient norms; empty without rows."""
    if layout.csv(_NORMS).exists():
        with layout.csv(_NORMS).open(encoding="utf-8", newline="") as file:
            row: dict[str, str] = {}
            for row in csv.DictReader(file):  # noqa: B007  # only the last row is needed
                pass
        return row
    if layout.parquet(_NORMS).exists():
        table = pq.read_table(layout.parquet(_NORMS))
        return {name: str(table[name][-1]) for name in table.column_names} if table.num_rows else {}
    return {}


def _epochs(outcome: Outcome) -> Table:
    title = "Validation metrics, one row per epoch, counted from 0"
    table = metrics_table(title, ["epoch", "train loss"], generated=outcome.generated)
    for result in outcome.results:
        add_metrics(table, [str(result.epoch), rounded(result.train_loss, 5)], result.metrics)
    add_metrics(table, ["constant", ""], outcome.constant)
    table.caption = "constant: predicts the mean distribution of the training images for every image."
    table.caption_justify = "left"
    return table


def _norms(norms: dict[str, str], *, generated: bool) -> Table:
    table = plain_table("Last gradient norms (L2, before clipping)", generated=generated)
    for name in norms:
        table.add_column(name, justify="right")
    counts = ("batch_idx", "epoch")
    table.add_row(*(value if name in counts or not value else f"{float(value):.4g}" for name, value in norms.items()))
    return table


def _lines(outcome: Outcome) -> Iterator[str]:
    root = outcome.layout.root
    yield from _cost(outcome.costs)
    if outcome.generated:
        yield "All numbers above come from generated data, not AVA: they only show that every part works."
    yield f"Files: {root}/ ({', '.join(_written(outcome.layout))})"
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        yield f"Stopped by {name}, with a checkpoint. To continue: the same command with --resume, without --restart."
        return
    yield f"Next: ava-pipeline validate {root}; ava-pipeline evaluate {root}"


def _written(layout: RunLayout) -> Iterator[str]:
    for path in (layout.metrics, layout.telemetry, layout.predictions, layout.checkpoint):
        if path.exists():
            yield f"{path.relative_to(layout.root)}{'/' if path.is_dir() else ''}"


def _cost(costs: Costs) -> Iterator[str]:
    if costs.num_batches and costs.train_s:
        share, each_us = costs.telemetry_s / costs.train_s, costs.telemetry_s / costs.num_batches * 1e6
        measured = f"{each_us:.0f} µs per batch, {costs.num_batches} batches"
        yield f"telemetry.step took {share:.2%} of the training time: {measured}."
