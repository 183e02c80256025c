"""What validation finds: rules, how a run breaks them, and how many violations are listed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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

    def at(self, file: str, positions: Positions, explain: Callable[[int], Cell]) -> Breach:
        """Breaches at 0-based row positions; `explain` is asked only for those that are listed."""
        return Breach(
            self,
            file,
            len(positions),
            lambda index: self._violation(file, explain(int(positions[index])), int(positions[index]) + 1),
        )

    def _violation(self, file: str, cell: Cell, row: int | None) -> Violation:
        return Violation(rule=self.id, severity=self.severity, file=file, row=row, **cell._asdict())


class Listing:
    """Violations in the order they were made, at most `MAX_LISTED` a rule and file.

    Args:
        ignore: rule ids, or families such as `norms`, to leave out.
    """

    def __init__(self, ignore: Sequence[str] = ()) -> None:
        self._ignore = set(ignore)
        self._violations: list[Violation] = []
        self._num: Counter[tuple[Rule, str]] = Counter()

    def add(self, breach: Breach) -> None:
        """Add violations of one rule and file."""
        if not self._ignore.isdisjoint({breach.rule.id, breach.rule.id.partition(".")[0]}):
            return
        room = max(0, MAX_LISTED - self._num[breach.rule, breach.file])
        self._violations += [breach.violation(index) for index in range(min(room, breach.num))]
        self._num[breach.rule, breach.file] += breach.num

    def take(self, breaches: Iterable[Breach]) -> None:
        """Add violations."""
        for breach in breaches:
            self.add(breach)

    def violations(self) -> list[Violation]:
        """Every violation listed; where there were more, a closing one counts the rest."""
        return self._violations + [
            Violation(
                rule=rule.id,
                severity=rule.severity,
                file=file,
                message=f"{num - MAX_LISTED} more of these are not listed.",
            )
            for (rule, file), num in self._num.items()
            if num > MAX_LISTED
        ]
