"""What to do when the disk refuses a file of the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ava_pipeline.errors import TrainingError


@contextmanager
def told_if_refused(path: Path) -> Iterator[None]:
    """Write `path` within the block; a resume writes it anew, from the checkpoint or from the start.

    Raises:
        TrainingError: the disk refused; says what to do.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror}). Make room, or see to the disk, then go on with --resume."
        ) from error
