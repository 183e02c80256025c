"""The run directory of a training: its files, its epochs in metrics.csv, and its lock.

Files of an earlier attempt move to superseded/; nothing is deleted.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.contract.untrusted import check_inside, check_name
from ava_pipeline.errors import ConfigError, RunExistsError, RunInUseError, TrainingError, WriteError
from ava_pipeline.metrics import Metrics
from ava_pipeline.write.lock import RunLock
from ava_pipeline.write.metrics_file import MetricsFile, next_superseded

_log = logging.getLogger("ava_pipeline")


@contextmanager
def training_error_if_refused(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a TrainingError that says how to continue."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror}). Free disk space or repair the disk, then continue with "
            "--resume."
        ) from error


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The results of one epoch."""

    epoch: int  # 0-based
    train_loss: float  # mean over the epoch's finite batch losses; nan if there were none
    metrics: Metrics  # of the validation images

    def to_row(self) -> dict[str, float]:
        """Column -> value, in file order."""
        return {"epoch": self.epoch, **self.values()}

    def values(self) -> dict[str, float]:
        """Metric -> value, in file order."""
        return {"train_loss": self.train_loss, **asdict(self.metrics)}

    @classmethod
    def from_row(cls, row: dict[str, float]) -> "EpochResult":
        """Build a result from the row that `to_row` returned."""
        metrics = Metrics(**{field.name: row[field.name] for field in fields(Metrics)})
        return cls(epoch=int(row["epoch"]), train_loss=row["train_loss"], metrics=metrics)


def write_result(file: MetricsFile, result: EpochResult) -> None:
    """Add the row of an epoch to metrics.csv; raise TrainingError if that fails."""
    with training_error_if_refused(file.path):
        file.write({Moment(result.epoch): result.values()})


def write_results(file: MetricsFile, results: Sequence[EpochResult]) -> None:
    """Replace the rows of metrics.csv; raise TrainingError if that fails."""
    with training_error_if_refused(file.path):
        file.replace({Moment(result.epoch): result.values() for result in results})


def check_free(layout: RunLayout) -> None:
    """Raise RunExistsError if the directory already holds a run, ConfigError if it is not a directory."""
    if layout.root.exists() and not layout.root.is_dir():
        raise ConfigError(f"output_dir {layout.root} is a file; give a directory, such as outputs/ava/my_run.")
    used = [path for path in (*_own_files(layout), layout.telemetry) if path.exists()]
    if used:
        raise RunExistsError(
            f"{layout.root} already holds a run ({', '.join(path.name for path in used)}). To continue it: --resume. "
            "To train into another directory: --output-dir DIR. To start over and keep the old files in superseded/: "
            "--restart."
        )


def check_writable(layout: RunLayout) -> None:
    """Raise ConfigError if the directory cannot be created or written; directories made for the check are removed."""
    made = [folder for folder in (layout.root, *layout.root.parents) if not folder.exists()]
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=layout.root) as file:
            file.write(b"?")
        for folder in made:
            folder.rmdir()
    except OSError as error:
        raise _unwritable(layout.root, error) from error


def start_over(layout: RunLayout, config_text: str) -> None:
    """Move an earlier attempt's files, except telemetry, to superseded/attempt-N; raise ConfigError if that fails."""
    _move([path for path in (*_own_files(layout), layout.report) if path.exists()], next_superseded(layout))
    _write_config(layout, config_text)


def rewind(layout: RunLayout, config_text: str, results: Sequence[EpochResult]) -> None:
    """Reset metrics.csv and the predictions to the epochs in `results`; later epochs move to superseded/.

    Raise ConfigError if the directory cannot be written, DamagedFileError if a link leads out of it.
    """
    check_inside(layout)
    check_name(layout, layout.config)
    kept = {layout.epoch_predictions(result.epoch).name for result in results}
    later = [path for path in sorted(layout.predictions.glob("val_epoch_*.parquet")) if path.name not in kept]
    folder = next_superseded(layout)
    _move(later, folder / layout.predictions.name)
    _move([layout.metrics] if _num_lines(layout.metrics) > len(results) + 1 else [], folder)
    _move([layout.config] if layout.config.exists() and layout.config.read_text() != config_text else [], folder)
    if results:
        write_results(MetricsFile(layout), results)
    _write_config(layout, config_text)


def _own_files(layout: RunLayout) -> list[Path]:
    return [
        layout.config,
        layout.metrics,
        layout.checkpoint.parent,
        layout.predictions,
        layout.split,
        layout.excluded_images,
    ]


def _move(paths: Sequence[Path], folder: Path) -> None:
    try:
        for path in paths:
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write_config(layout: RunLayout, text: str) -> None:
    try:
        with written_aside(layout.config) as file:
            file.write(text.encode())
    except OSError as error:
        raise _unwritable(layout.root, error) from error


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"output_dir: {folder} cannot be written ({error.strerror}); give another directory: --output-dir DIR."
    )


def _num_lines(path: Path) -> int:
    """Count lines, including an unfinished last line, so that a file with one is superseded."""
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def train_lock(layout: RunLayout) -> Path:
    """The lock file that a training holds while it writes."""
    return layout.root / "train.lock"


@contextmanager
def sole_writer(layout: RunLayout) -> Iterator[None]:
    """Lock the run directory inside the block; raise RunInUseError if another process, which it names, writes there."""
    lock = _acquire(layout)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquire(layout: RunLayout) -> RunLock | None:
    """Acquire the lock; None on a file system without locks."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        lock = RunLock(train_lock(layout), layout.manifest)
    except (WriteError, BlockingIOError) as error:
        raise RunInUseError(str(error)) from error
    except OSError as error:
        _log.warning("%s cannot be locked (%s): make sure that no other process trains into it.", layout.root, error)
        return None
    try:
        _refuse_telemetry(layout)
    except BaseException:
        lock.release()
        raise
    return lock


def _refuse_telemetry(layout: RunLayout) -> None:
    """Check the collector's lock, which it acquires at its first collected step."""
    if layout.lock.exists():
        try:
            RunLock(layout.lock).release()
        except (WriteError, BlockingIOError) as error:
            raise RunInUseError(str(error)) from error
