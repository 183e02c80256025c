"""Rules, the places that break them, and the findings that validation lists."""

import re
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import Integers
from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.contract.layout import RunLayout

MAX_LISTED = 20

# 1-based data rows; 0 is the header of a CSV file, None the whole file.
Rows = Sequence[int | None] | NDArray[np.intp]


class Cell(NamedTuple):
    """What is wrong in one row."""

    message: str
    column: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that holds for every valid run, as its sentence says; an info never fails a validation.

    The id is a family and a name, e.g. `norms.head-sum`; its meaning never changes.
    """

    id: str
    sentence: str
    severity: Severity = "error"

    def broken(
        self, file: str, message: str, *, row: int | None = None, column: str | None = None, value: str | None = None
    ) -> "Breach":
        """The rule is broken at one place: in a row, or in the file as a whole."""
        cell = Cell(message, column, value)
        return Breach(self, file, [row], lambda _: cell, 1)

    def broken_rows(self, file: str, rows: Rows, explain: Callable[[int], Cell], *, num: int | None = None) -> "Breach":
        """The rule is broken in several rows of a file, which is a path below the run directory.

        The rows are 1-based and ascending; the first `MAX_LISTED` are enough if `num` counts all of them.
        `explain(index)` makes the sentence of `rows[index]`, and is called for the rows that are listed.
        """
        return Breach(self, file, rows, explain, len(rows) if num is None else num)


@dataclass(frozen=True, slots=True)
class Breach:
    """Places in one file that break one rule; see `Rule.broken_rows`."""

    rule: Rule
    file: str
    rows: Rows
    explain: Callable[[int], Cell]
    num: int


AddBreach = Callable[[Breach], None]


@dataclass(slots=True)
class _Places:
    """The places of one file that break one rule: how many, and the `MAX_LISTED` lowest rows."""

    listed: list[tuple[int | None, Cell]] = field(default_factory=list)
    num: int = 0


class Listing:
    """Breaches by rule and file: the lowest rows of each, in whatever order they come; `ignore` has ids or families."""

    def __init__(self, ignore: Iterable[str] = ()) -> None:
        self._ignore = frozenset(ignore)
        self._places: dict[tuple[Rule, str], _Places] = {}
        self._lines: dict[str, LineNumbers] = {}

    def add(self, breach: Breach) -> None:
        """Count a breach, and make the sentences of the rows that are listed."""
        if not self._ignore.isdisjoint({breach.rule.id, breach.rule.id.partition(".")[0]}):
            return
        places = self._places.setdefault((breach.rule, breach.file), _Places())
        places.num += breach.num
        for index, row in enumerate(breach.rows[:MAX_LISTED]):
            number = None if row is None else int(row)
            if len(places.listed) == MAX_LISTED and (number or 0) >= (places.listed[-1][0] or 0):
                break
            insort(places.listed, (number, breach.explain(index)), key=lambda place: place[0] or 0)
            del places.listed[MAX_LISTED:]

    def line_numbers(self, file: str) -> "LineNumbers":
        """The line numbers of a CSV file, for its reader to fill in."""
        self._lines[file] = LineNumbers()
        return self._lines[file]

    def empty_copy(self) -> "Listing":
        """An empty listing that ignores the same rules, for breaches that may have to be dropped."""
        return Listing(self._ignore)

    def breaches(self) -> Iterator[Breach]:
        """Everything listed, for another listing to add."""
        for (rule, file), places in self._places.items():
            cells = [cell for _, cell in places.listed]
            yield Breach(rule, file, [row for row, _ in places.listed], cells.__getitem__, places.num)

    def findings(self) -> list[Finding]:
        """Every breach listed, by file, rule and row; then one finding per rule and file with the number not listed."""
        groups = sorted(self._places.items(), key=lambda group: (group[0][1], group[0][0].id))
        found = [self._finding(*key, *place) for key, places in groups for place in places.listed]
        for (rule, file), places in groups:
            if places.num > MAX_LISTED:
                message = f"{places.num - MAX_LISTED} more findings of this rule are not listed."
                found.append(Finding(id=rule.id, severity=rule.severity, file=file, message=message))
        return found

    def _finding(self, rule: Rule, file: str, row: int | None, cell: Cell) -> Finding:
        line = self._lines[file].line_of(row) if file in self._lines and row is not None else None
        return Finding(id=rule.id, severity=rule.severity, file=file, row=row or None, line=line, **cell._asdict())


_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"[^,\n]*+'
_FIELD = rb"(?:" + _QUOTED + rb'|[^,\n"][^,\n]*+|)'
_CSV_ROW = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+\n")


class LineNumbers:
    """The lines on which the rows of a CSV file begin, as an editor counts them; the header is line 1.

    Rows of one line each take no memory; a block with blank lines, or with line feeds in quoted text, takes 8 bytes
    per row.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._num_lines = 1
        self._starts: list[int] = []  # of each block: how many rows come before it
        self._lines: list[int | Integers] = []  # of each block: line minus row, or the line of each row

    def append(self, data: bytes, num_rows: int) -> None:
        """Add a block of whole lines that hold `num_rows` rows."""
        num_lines = data.count(b"\n")
        lines = self._num_lines - self.num_rows if num_lines == num_rows else self._num_lines + 1 + _row_lines(data)
        if isinstance(lines, np.ndarray) or not self._lines or isinstance(self._lines[-1], np.ndarray):
            self._starts.append(self.num_rows)
            self._lines.append(lines)
        self.num_rows += num_rows
        self._num_lines += num_lines

    def line_of(self, row: int) -> int:
        """The line on which a 1-based row begins; row 0 is the header, and the row after the last is the next line."""
        if row == 0:
            return 1
        if row > self.num_rows:
            return self._num_lines + row - self.num_rows
        block = bisect_right(self._starts, row - 1) - 1
        lines = self._lines[block]
        if isinstance(lines, int):
            return row + lines
        return int(lines[min(row - 1 - self._starts[block], len(lines) - 1)]) if len(lines) else self._num_lines


def _row_lines(data: bytes) -> Integers:
    """The 0-based line on which each row begins: blank lines are not rows, and quoted text may hold line feeds."""
    lines: list[int] = []
    line, start = 0, 0
    for match in _CSV_ROW.finditer(data):
        line += data.count(b"\n", start, match.start())
        if match[0].strip(b"\r\n"):
            lines.append(line)
        start = match.start()
    return np.asarray(lines, dtype=np.int64)


def relative(layout: RunLayout, path: Path) -> str:
    """A path below the run directory, as findings name it."""
    return path.relative_to(layout.root).as_posix()


def without_path(error: object, path: Path) -> str:
    """The text of an error without the file's path, which a finding shows already."""
    return str(error).removeprefix(str(path)).removeprefix(":").lstrip().rstrip(".") + "."
