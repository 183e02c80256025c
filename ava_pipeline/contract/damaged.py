"""What cannot be read is kept: the folder `damaged/` beside it."""

import shutil
from itertools import chain, count
from pathlib import Path

from ava_pipeline.contract.files import written_aside


def keep_damaged(path: Path) -> Path:
    """Move a file that cannot be read, or not all of it, to the folder `damaged/` beside it.

    Returns:
        Where it is now.
    """
    place = free_place(path)
    place.parent.mkdir(exist_ok=True)
    return path.rename(place)


def keep_damaged_copy(path: Path) -> None:
    """Copy a file, of which a part is to be cut out, to the folder `damaged/` beside it."""
    with path.open("rb") as damaged, written_aside(free_place(path)) as file:
        shutil.copyfileobj(damaged, file)


def keep_damaged_end(path: Path, end: bytes) -> None:
    """Copy the end of a file, which is to be cut off, to the folder `damaged/` beside it."""
    with written_aside(free_place(path.with_name(f"{path.name}.end"))) as file:
        file.write(end)


def free_place(path: Path) -> Path:
    """Where in the folder `damaged/` beside it a file can be kept, behind those of the same name."""
    folder = path.parent / "damaged"
    names = chain([path.name], (f"{path.name}.{number}" for number in count(1)))
    return next(folder / name for name in names if not (folder / name).exists())
