"""Progress bars and messages while a run is training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ava_pipeline.terminal import GENERATED
from ava_pipeline.train.run_dir import EpochResult

_SECONDS_BETWEEN_UPDATES = 0.2


class Bar:
    """One progress bar, redrawn at most five times a second however often it is updated."""

    def __init__(self, progress: Progress, task: TaskID, *, done: int) -> None:
        self._progress = progress
        self._task = task
        self._started_at = done
        self._started_s = self._drawn_s = time.monotonic()

    def update(self, done: int, *, loss: float | None = None, images_each: int = 0) -> None:
        """Show how much is done.

        Args:
            done: batches (or images) done so far.
            loss: the latest known loss.
            images_each: images per batch; if given, images/s are shown.
        """
        now_s = time.monotonic()
        if now_s - self._drawn_s < _SECONDS_BETWEEN_UPDATES:
            return
        self._drawn_s = now_s
        speed = (done - self._started_at) * images_each / max(now_s - self._started_s, 1e-9)
        figures = [*([] if loss is None else [f"loss {loss:.5f}"]), *([f"{speed:.0f} images/s"] if images_each else [])]
        self._progress.update(self._task, completed=done, figures="  ".join(figures))


class Display:
    """Shows progress bars and one line per epoch on a console.

    Args:
        console: where to print; a quiet console shows nothing.
    """

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
