"""Nothing outside a run directory is read or written through it."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ava_pipeline.contract.layout import PARTIAL_SUFFIX, RunLayout
from ava_pipeline.errors import DamagedFileError

# What ends so is a file wherever it lies in a run directory.
_SUFFIXES_OF_FILES = frozenset({".csv", ".parquet", ".journal", ".json", ".lock", ".yaml", ".pt", PARTIAL_SUFFIX})


def check_inside(layout: RunLayout) -> None:
    """Refuse a run in which a name that telemetry reads or writes leads elsewhere, or to what does not belong there.

    The run directory itself may be a link, and so may names that lead to another place inside of it.

    Raises:
        DamagedFileError: a link leads out of the run directory, in a circle or to nothing; or a folder, a pipe or a
            device stands where a file belongs, or a file where a folder does.
    """
    root = layout.root.resolve()
    for folder in _folders(layout):
        _check(folder, root)
        if folder.exists() and not folder.is_dir():
            raise DamagedFileError(f"{folder} is a file where a folder belongs. Move it away.")
    for path in _names(layout):
        _check(path, root)


def check_name(layout: RunLayout, path: Path) -> None:
    """Refuse one name of a run directory, as `check_inside` does those of telemetry.

    Raises:
        DamagedFileError: it leads out of the run directory or in a circle, or to something that is no file.
    """
    _check(path, layout.root.resolve())


def _check(path: Path, root: Path) -> None:
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # which of them a circle raises depends on Python's version
        raise DamagedFileError(f"{path} is a link that leads in a circle. Remove it.") from error
    if not place.is_relative_to(root):
        raise DamagedFileError(
            f"{path} is a link out of the run directory, to {place}; telemetry neither reads nor writes "
            "there. Put the file itself in its place, or make the run directory as a whole a link."
        )
    if path.is_symlink() and path.suffix in _SUFFIXES_OF_FILES and not path.exists():
        raise DamagedFileError(f"{path} is a link that leads to nothing. Remove it.")
    if path.is_dir() and path.suffix in _SUFFIXES_OF_FILES:
        raise DamagedFileError(f"{path} is a folder where a file belongs. Move it away.")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DamagedFileError(f"{path} is neither a file nor a folder. Move it away.")


def _folders(layout: RunLayout) -> Iterator[Path]:
    """An outer one before those in it."""
    yield from (layout.telemetry, layout.damaged, layout.telemetry / "superseded", layout.predictions)


def _names(layout: RunLayout) -> Iterator[Path]:
    """Every name that telemetry may read or write below and beside its folders."""
    yield layout.metrics
    yield from chain.from_iterable(folder.iterdir() for folder in _folders(layout) if folder.is_dir())
    yield from layout.telemetry.glob("superseded/*/*")
