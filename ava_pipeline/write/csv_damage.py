"""CSV files that something else wrote into: what is no row any more is kept in `damaged/`, and the rows stay."""

from pathlib import Path
from typing import NamedTuple

from ava_pipeline.contract.damaged import keep_damaged, keep_damaged_copy
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.lines import read_line, read_lines
from ava_pipeline.errors import DamagedFileError

_EVENTS_HEADER = (",".join(column.name for column in EVENTS.columns) + "\n").encode()


class CsvDamage(NamedTuple):
    """What of a file's whole lines is no row of its table.

    Attributes:
        num_lines: how many of the lines below the header; None is the whole file, whose header is not ours, or one of
            whose lines is longer than any.
    """

    message: str
    num_lines: int | None


def csv_damage(path: Path) -> CsvDamage | None:
    """Look for lines that are no rows; None where there are none. A last line that was never finished is none yet."""
    try:
        return _find_damage(path)
    except DamagedFileError as error:
        return CsvDamage(str(error), None)


def _find_damage(path: Path) -> CsvDamage | None:
    with path.open("rb") as file:
        header = read_line(file)
        if header.endswith(b"\n") and not _is_header(path, header):
            return CsvDamage(f"its header is {header[:80]!r}, which was not written here", None)
        bad = ((number, line) for number, line in enumerate(read_lines(file), start=2) if _is_damaged(line))
        first = next(bad, None)
        if first is None:
            return None
        num_lines = 1 + sum(1 for _ in bad)
    return CsvDamage(f"{num_lines} lines begin with no batch, at first line {first[0]}: {first[1][:40]!r}", num_lines)


def mend_csv(path: Path) -> CsvDamage | None:
    """Keep a damaged file in `damaged/`, and leave in its place the lines that are rows.

    Returns:
        What was found; None where all is well.

    Raises:
        OSError: the disk refused; the file still stands as it was.
    """
    damage = csv_damage(path)
    if damage is not None and damage.num_lines is None:
        keep_damaged(path)
    elif damage is not None:
        keep_damaged_copy(path)
        with path.open("rb") as older, written_aside(path) as file:
            file.write(older.readline())
            file.writelines(line for line in older if not _is_damaged(line))
    return damage


def batch_of(line: bytes) -> int:
    """The batch that a line begins with.

    Raises:
        ValueError: with none.
    """
    return int(line.split(b",", 1)[0])


def _is_header(path: Path, header: bytes) -> bool:
    return header == _EVENTS_HEADER if path.stem == EVENTS.name else header.startswith(b"batch_idx,")


def _is_damaged(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return batch_of(line) < 0
    except ValueError:
        return True
