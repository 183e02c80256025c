"""Write files so that a final name means a complete file: under another name first, then synced and renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

from ava_pipeline.contract.layout import PARTIAL_SUFFIX


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` when the block ends, and not at all if the block raises.

    Its folder is created if needed. An older file at `path` is replaced, or unchanged if the block raises.

    Example:
        >>> with written_aside(Path("outputs/report.html")) as file:  # doctest: +SKIP
        ...     file.write(b"<!doctype html>")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        partial.unlink(missing_ok=True)  # left by a kill, or a link, whose target must not be overwritten
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power loss, on systems that can sync a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_whole(descriptor: int, data: bytes, end: int) -> int:
    """Append `data` to a file that ends at byte `end`, in full or not at all, and return the new end.

    If the disk refuses the bytes, the file ends at `end` again and the OSError is raised.
    """
    try:
        if os.lseek(descriptor, 0, os.SEEK_END) > end:  # half of an earlier write, which the disk refused to cut off
            os.ftruncate(descriptor, end)
        left = memoryview(data)
        while left:
            left = left[os.pwrite(descriptor, left, end + len(data) - len(left)) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise
    return end + len(data)


def keep_damaged(path: Path) -> Path:
    """Move a file that cannot be read in full into the folder `damaged/` beside it, and return its new path."""
    place = free_place(path)
    place.parent.mkdir(exist_ok=True)
    return path.rename(place)


def keep_damaged_copy(path: Path) -> None:
    """Copy a file, of which a part will be removed, into the folder `damaged/` beside it."""
    with path.open("rb") as damaged, written_aside(free_place(path)) as file:
        shutil.copyfileobj(damaged, file)


def keep_damaged_end(path: Path, end: bytes) -> None:
    """Copy the end of a file, which will be cut off, into the folder `damaged/` beside it."""
    with written_aside(free_place(path.with_name(f"{path.name}.end"))) as file:
        file.write(end)


def free_place(path: Path) -> Path:
    """The first free name for a file in the folder `damaged/` beside it: its own name, or that with a number."""
    folder = path.parent / "damaged"
    names = chain([path.name], (f"{path.name}.{number}" for number in count(1)))
    return next(folder / name for name in names if not (folder / name).exists())
