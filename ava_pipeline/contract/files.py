"""A final file name means a complete file: write aside, sync, rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
