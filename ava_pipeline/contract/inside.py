"""Nothing outside a run directory is read or written through it."""

import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import DamagedFileError


def check_inside(layout: RunLayout) -> None:
    """Refuse a run in which a name leads elsewhere, or to something that is no file.

    The run directory itself may be a link, and so may names that lead to another place inside of it.

    Raises:
        DamagedFileError: a link leads out of the run directory, or a pipe or a device stands where a file belongs.
    """
    root = layout.root.resolve()
    for path in _names(layout):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise DamagedFileError(
                f"{path} is a link out of the run directory, to {path.resolve()}; telemetry neither reads nor writes "
                "there. Put the file itself in its place, or make the run directory as a whole a link."
            )
        if path.exists() and not _is_plain(path):
            raise DamagedFileError(f"{path} is neither a file nor a folder. Move it away.")


def _is_plain(path: Path) -> bool:
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _names(layout: RunLayout) -> Iterator[Path]:
    """Every name that telemetry may read or write, folders before what is in them."""
    yield from (layout.telemetry, layout.predictions, layout.metrics)
    folders = (layout.telemetry, layout.damaged, layout.telemetry / "superseded", layout.predictions)
    yield from chain.from_iterable(folder.iterdir() for folder in folders if folder.is_dir())
    yield from layout.telemetry.glob("superseded/*/*")
