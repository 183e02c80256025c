"""What a person sees of a training: progress bars, one line per epoch, and the summary at its end."""

import csv
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.metrics import Metrics
from ava_pipeline.terminal import GENERATED, add_metrics, metrics_table, plain_table, rounded
from ava_pipeline.train.batch_step import Costs
from ava_pipeline.train.run_dir import EpochResult

_NORMS = "gradient_norms"
_SECONDS_BETWEEN_UPDATES = 0.2


class Bar:
    """One progress bar, redrawn at most five times a second however often it is updated."""

    def __init__(self, progress: Progress, task: TaskID, *, done: int) -> None:
        self._progress = progress
        self._task = task
        self._started_at = done
        self._started_s = self._drawn_s = time.monotonic()

    def update(self, done: int, *, loss: float | None = None, images_each: int = 0) -> None:
        """Show `done` batches (or images), the latest loss and, given the number of images per batch, images/s."""
        now_s = time.monotonic()
        if now_s - self._drawn_s < _SECONDS_BETWEEN_UPDATES:
            return
        self._drawn_s = now_s
        speed = (done - self._started_at) * images_each / max(now_s - self._started_s, 1e-9)
        figures = [*([] if loss is None else [f"loss {loss:.5f}"]), *([f"{speed:.0f} images/s"] if images_each else [])]
        self._progress.update(self._task, completed=done, figures="  ".join(figures))


class Display:
    """Shows progress bars and one line per epoch on a console; a quiet console shows nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def bar(self, description: str, *, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar inside the block; it disappears afterwards. Nothing is shown in a file or a pipe."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        no_terminal = not self._console.is_terminal
        with Progress(
            *columns, console=self._console, transient=True, refresh_per_second=5, disable=no_terminal
        ) as progress:
            task = progress.add_task(description, total=total, completed=done, figures="")
            yield Bar(progress, task, done=done)

    def epoch(self, result: EpochResult, *, epochs: int, generated: bool) -> None:
        """Print the metrics of an epoch; metrics of generated data are marked."""
        metrics, kind = result.metrics, f" ({GENERATED})" if generated else ""
        self.say(
            f"epoch {result.epoch}, {result.epoch + 1} of {epochs}{kind}: train loss {result.train_loss:.5f}, "
            f"val emd_r1 {metrics.emd_r1:.4f}, emd_r2 {metrics.emd_r2:.4f}, SRCC {metrics.srcc:.3f}, "
            f"PLCC {metrics.plcc:.3f}, accuracy {metrics.accuracy:.1%}"
        )

    def say(self, sentence: str) -> None:
        """Print a line."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a training."""

    layout: RunLayout
    results: list[EpochResult]  # one per finished epoch, including those before a resume
    constant: Metrics  # of predicting the training images' mean distribution for every validation image
    costs: Costs  # of this process
    stopped_by: int | None  # the signal that stopped training; None for a complete run
    generated: bool  # the data was generated and is not AVA


def show_summary(outcome: Outcome, console: Console) -> None:
    """Print the epochs and the constant predictor, the last norms, telemetry's cost, the files and what is next."""
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
        yield f"Stopped by {name}, with a checkpoint. To continue, run it again with --resume and without --restart."
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
