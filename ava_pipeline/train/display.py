"""What a person sees while a run goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ava_pipeline.terminal import GENERATED
from ava_pipeline.train.run_dir import EpochResult

_SECONDS_BETWEEN_UPDATES = 0.2


class Bar:
    """One progress bar; redrawn five times a second at most, however often it is told."""

    def __init__(self, progress: Progress, task: TaskID, *, done: int) -> None:
        self._progress = progress
        self._task = task
        self._started_at = done
        self._started_s = self._drawn_s = time.monotonic()

    def update(self, done: int, *, loss: float | None = None, images_each: int = 0) -> None:
        """Say how much is done.

        Args:
            done: batches (or images) of the bar's total.
            loss: of the latest batch that is known.
            images_each: images a batch; where given, images/s are shown.
        """
        now_s = time.monotonic()
        if now_s - self._drawn_s < _SECONDS_BETWEEN_UPDATES:
            return
        self._drawn_s = now_s
        speed = (done - self._started_at) * images_each / max(now_s - self._started_s, 1e-9)
        figures = [*([] if loss is None else [f"loss {loss:.5f}"]), *([f"{speed:.0f} images/s"] if images_each else [])]
        self._progress.update(self._task, completed=done, figures="  ".join(figures))


class Display:
    """Progress bars, and one line an epoch, on one console.

    Args:
        console: where to; a quiet one shows nothing.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def bar(self, description: str, *, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar within the block; it disappears afterwards. In a file or a pipe there is none."""
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
        """Say what an epoch reached, in a line that stays; figures of generated data are called so."""
        metrics, kind = result.metrics, f" ({GENERATED})" if generated else ""
        self.say(
            f"epoch {result.epoch}, {result.epoch + 1} of {epochs}{kind}: train loss {result.train_loss:.5f}, "
            f"val emd_r1 {metrics.emd_r1:.4f}, emd_r2 {metrics.emd_r2:.4f}, SRCC {metrics.srcc:.3f}, "
            f"PLCC {metrics.plcc:.3f}, accuracy {metrics.accuracy:.1%}"
        )

    def say(self, sentence: str) -> None:
        """Print a line that stays."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)
