"""The run directory: used or free, and what earlier attempts left set aside."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.inside import check_inside, check_name
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import ConfigError, RunExistsError
from ava_pipeline.train.history import EpochResult, write_results


def split_path(layout: RunLayout) -> Path:
    """Which images trained, validated and tested."""
    return layout.root / "split.csv"


def excluded_path(layout: RunLayout) -> Path:
    """The images that were left out, and why."""
    return layout.root / "excluded_images.csv"


def check_free(layout: RunLayout) -> None:
    """Refuse a directory that holds a run.

    Raises:
        RunExistsError: it does; the message names the ways on.
        ConfigError: it is no directory.
    """
    if layout.root.exists() and not layout.root.is_dir():
        raise ConfigError(f"output_dir {layout.root} is a file; give a directory, such as outputs/ava/my_run.")
    used = [path for path in (*_own_files(layout), layout.telemetry) if path.exists()]
    if used:
        raise RunExistsError(
            f"{layout.root} already holds a run ({', '.join(path.name for path in used)}). Go on with it: --resume. "
            "Train into another directory: --output-dir DIR. Begin anew here, the old files set aside: --restart."
        )


def check_writable(layout: RunLayout) -> None:
    """Write a file into the directory and take it back, before anything takes time; a folder that is new goes again.

    Raises:
        ConfigError: the directory cannot be made or written.
    """
    made = [folder for folder in (layout.root, *layout.root.parents) if not folder.exists()]
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=layout.root) as file:
            file.write(b"?")
        for folder in made:
            folder.rmdir()
    except OSError as error:
        raise _unwritable(layout.root, error) from error


def begin_anew(layout: RunLayout, config_text: str) -> None:
    """Move an earlier attempt's files, all but telemetry (the collector moves its own), to superseded/attempt-N.

    Raises:
        ConfigError: the directory cannot be written.
    """
    _move([path for path in (*_own_files(layout), layout.report) if path.exists()], _next_attempt(layout))
    _write_config(layout, config_text)


def go_on(layout: RunLayout, config_text: str, results: Sequence[EpochResult]) -> None:
    """Bring metrics.csv and the predictions back to the epochs in `results`; what is past them is moved, not lost.

    Raises:
        ConfigError: the directory cannot be written.
        DamagedFileError: a name leads out of the directory.
    """
    check_inside(layout)
    check_name(layout, layout.config)
    kept = {layout.epoch_predictions(result.epoch).name for result in results}
    later = [path for path in sorted(layout.predictions.glob("val_epoch_*.parquet")) if path.name not in kept]
    folder = _next_attempt(layout)
    _move(later, folder / layout.predictions.name)
    _move([layout.metrics] if _num_lines(layout.metrics) > len(results) + 1 else [], folder)
    _move([layout.config] if layout.config.exists() and layout.config.read_text() != config_text else [], folder)
    if results:
        write_results(layout.metrics, results)
    _write_config(layout, config_text)


def _own_files(layout: RunLayout) -> list[Path]:
    return [
        layout.config,
        layout.metrics,
        layout.checkpoint.parent,
        layout.predictions,
        split_path(layout),
        excluded_path(layout),
    ]


def _next_attempt(layout: RunLayout) -> Path:
    folder = layout.root / "superseded"
    number = next(number for number in count(1) if not (folder / f"attempt-{number}").exists())
    return folder / f"attempt-{number}"


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
        f"output_dir: {folder} cannot be written ({error.strerror}); give another one: --output-dir DIR."
    )


def _num_lines(path: Path) -> int:
    """Lines, a torn last one counted, so that a file with one is set aside."""
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
