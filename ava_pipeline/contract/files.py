"""A final file name means a complete file: write aside, sync, rename."""

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
    """Open a file that appears under `path` when the block ends well, and not at all when it raises.

    Args:
        path: the final name; its folder is made if need be, a file of that name is replaced.

    Raises:
        OSError: the file cannot be written; whatever stood at `path` still stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        partial.unlink(missing_ok=True)  # a kill's leftover, or a link: what it leads to is not written over
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
    """Make names in `folder` survive a power loss, where the system lets folders be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def append_whole(descriptor: int, data: bytes, end: int) -> int:
    """Write `data` at `end`, the end of the file, in full or not at all.

    Returns:
        The new end of the file, in bytes.

    Raises:
        OSError: the system did not take the bytes; the file ends at `end` again.
    """
    try:
        if os.lseek(descriptor, 0, os.SEEK_END) > end:  # half a write, by a disk that refused to cut it too
            os.ftruncate(descriptor, end)
        left = memoryview(data)
        while left:
            left = left[os.pwrite(descriptor, left, end + len(data) - len(left)) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise
    return end + len(data)
