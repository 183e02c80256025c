"""Predictions that the disk did not take, kept until it does."""

import logging
import shutil
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.inside import check_inside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet_file import write_checked
from ava_pipeline.errors import DamagedFileError, PredictionsError

_log = logging.getLogger("ava_pipeline")

MAX_KEPT_BYTES = 256 * 2**20


class KeptPredictions:
    """Writes epochs' files; those that could not be written wait for `write_again`, as long as memory permits.

    Args:
        max_bytes: of all that waits.
    """

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[Path, pa.Table] = {}

    def write(self, path: Path, rows: pa.Table) -> None:
        """Write one file; an older one of the name is moved to `superseded/` beside it, once the new one is whole.

        Raises:
            PredictionsError: the disk refused, gave back other bytes, or a name leads out of the run directory; says
                whether the rows are kept.
        """
        self._kept.pop(path, None)
        try:
            _replace(path, rows)
        except (OSError, DamagedFileError) as error:
            reason = str(error).removesuffix(".")
            waiting = sum(table.nbytes for table in self._kept.values())
            if waiting + rows.nbytes > self._max_bytes:
                raise PredictionsError(
                    f"{reason}. {waiting} bytes of others wait already, so these are gone."
                ) from error
            self._kept[path] = rows
            raise PredictionsError(f"{reason}. They are kept in memory, and close() tries again.") from error

    def write_again(self) -> None:
        """Try once more what waits; what the disk does not take now is gone, and a warning names it."""
        for path, rows in self._kept.items():
            try:
                _replace(path, rows)
            except (OSError, DamagedFileError) as error:
                _log.warning("%s was not written at the end either, and is lost: %s.", path, error)
            else:
                _log.info("%s, which the disk did not take before, is written now.", path)
        self._kept.clear()


def _replace(path: Path, rows: pa.Table) -> None:
    check_inside(RunLayout(path.parents[1]))
    with written_aside(path) as file:
        write_checked(file, rows)
        _keep_older(path)


def _keep_older(path: Path) -> None:
    """A copy, so that there is a file of the name at any moment."""
    if path.exists():
        folder = path.parent / "superseded"
        number = sum(1 for _ in folder.glob(f"{path.stem}.*{path.suffix}")) + 1
        with path.open("rb") as older, written_aside(folder / f"{path.stem}.{number}{path.suffix}") as copy:
            shutil.copyfileobj(older, copy)
