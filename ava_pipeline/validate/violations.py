"""What validation finds: rules, how a run breaks them, and how many violations are listed."""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Severity = Literal["error", "warning", "info"]
Positions = NDArray[np.intp]

MAX_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One place where a run directory breaks a rule.

    Attributes:
        rule: stable id, e.g. `norms.head-sum`.
        severity: an error breaks the contract; a warning is worth a look; an info never fails a validation.
        file: path below the run directory, with forward slashes.
        row: 1-based data row, the header not counted; None where it concerns the whole file.
        column: the column concerned, where it is one.
        value: what was found there, as text.
        message: one sentence: what is wrong and what is allowed.
    """

    rule: str
    severity: Severity
    file: str
    message: str
    row: int | None = None
    column: str | None = None
    value: str | None = None

    def __str__(self) -> str:
        """`file:row column: message [rule]`."""
        row = f":{self.row}" if self.row is not None else ""
        column = f" {self.column}" if self.column else ""
        return f"{self.file}{row}{column}: {self.message} [{self.rule}]"


class Cell(NamedTuple):
    """What is wrong at one row."""

    message: str
    column: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Breach:
    """Rows of one file that break one rule; their sentences are only made where they are listed."""

    rule: "Rule"
    file: str
    num: int
    violation: Callable[[int], Violation]


@dataclass(frozen=True, slots=True)
class Rule:
    """Something a run directory must keep.

    Attributes:
        id: family and name, e.g. `norms.head-sum`; never changes its meaning.
        sentence: what is true of a directory that keeps it.
    """

    id: str
    sentence: str
    severity: Severity = "error"

    def found(self, file: str, cell: Cell | str, *, row: int | None = None) -> Breach:
        """One breach, of a whole file or at one 1-based row."""
        violation = self._violation(file, Cell(cell) if isinstance(cell, str) else cell, row)
        return Breach(self, file, 1, lambda _: violation)

    def at(self, file: str, positions: Positions, explain: Callable[[int], Cell], *, start: int = 0) -> Breach:
        """Breaches at 0-based row positions behind `start`; `explain` is asked only for those that are listed."""

        def violation(index: int) -> Violation:
            position = int(positions[index])
            return self._violation(file, explain(position), start + position + 1)

        return Breach(self, file, len(positions), violation)

    def some(self, file: str, cells: Sequence[tuple[int, Cell]], *, num: int) -> Breach:
        """So many breaches, the first of them at 1-based rows; as many cells as are listed will do."""
        return Breach(self, file, num, lambda index: self._violation(file, cells[index][1], cells[index][0]))

    def _violation(self, file: str, cell: Cell, row: int | None) -> Violation:
        return Violation(rule=self.id, severity=self.severity, file=file, row=row, **cell._asdict())


class Listing:
    """Violations by rule and file, of each the `MAX_LISTED` of the lowest rows, however the file is read.

    Args:
        ignore: rule ids, or families such as `norms`, to leave out.
    """

    def __init__(self, ignore: Sequence[str] = ()) -> None:
        self._ignore = frozenset(ignore)
        self._listed: dict[tuple[Rule, str], list[Violation]] = {}
        self._num: Counter[tuple[Rule, str]] = Counter()

    def add(self, breach: Breach) -> None:
        """Add violations of one rule and file."""
        if not self._ignore.isdisjoint({breach.rule.id, breach.rule.id.partition(".")[0]}):
            return
        listed = self._listed.setdefault((breach.rule, breach.file), [])
        for index in range(min(MAX_LISTED, breach.num)):
            violation = breach.violation(index)
            if len(listed) == MAX_LISTED and _row(violation) >= _row(listed[-1]):
                break
            insort(listed, violation, key=_row)
            del listed[MAX_LISTED:]
        self._num[breach.rule, breach.file] += breach.num

    def take(self, breaches: Iterable[Breach]) -> None:
        """Add violations."""
        for breach in breaches:
            self.add(breach)

    def aside(self) -> "Listing":
        """An empty listing that ignores the same, for violations that may come to nothing."""
        return Listing(tuple(self._ignore))

    def breaches(self) -> Iterator[Breach]:
        """All of it, for another listing to take."""
        for (rule, file), listed in self._listed.items():
            yield Breach(rule, file, self._num[rule, file], listed.__getitem__)

    def violations(self) -> list[Violation]:
        """Every violation listed, by file, rule and row; where there were more, a closing one counts the rest."""
        groups = sorted(self._listed, key=lambda group: (group[1], group[0].id))
        return [one for group in groups for one in self._listed[group]] + [
            Violation(
                rule=rule.id,
                severity=rule.severity,
                file=file,
                message=f"{num - MAX_LISTED} more of these are not listed.",
            )
            for rule, file in groups
            if (num := self._num[rule, file]) > MAX_LISTED
        ]


def _row(violation: Violation) -> int:
    """What concerns the whole file comes first."""
    return violation.row or 0
