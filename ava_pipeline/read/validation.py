"""What a validation says: as text for a person, as JSON for a program."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ava_pipeline.printed import plain
from ava_pipeline.read.violations import Rule, Violation


@dataclass(frozen=True, slots=True)
class Validation:
    """The violations of one run directory or file.

    Attributes:
        path: as it was given.
        violations: in the order they were made.
        strict: warnings count as problems.
    """

    path: str
    violations: Sequence[Violation]
    strict: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that counts."""
        counting = {"error", "warning"} if self.strict else {"error"}
        return counting.isdisjoint(violation.severity for violation in self.violations)

    def to_text(self) -> str:
        """A line a violation, then one that sums up; nothing in them moves a terminal's cursor."""
        return "\n".join(plain(line) for line in (*map(str, self.violations), self._summary()))

    def to_json(self) -> dict[str, Any]:
        """Whether it is clean, and the violations."""
        return {
            "clean": self.is_clean,
            "violations": [asdict(violation) for violation in self.violations],
        }

    def _summary(self) -> str:
        num = Counter(violation.severity for violation in self.violations)
        told = ", ".join(
            f"{num[kind]} {kind}{'s' * (num[kind] != 1)}" for kind in ("error", "warning", "info") if num[kind]
        )
        verdict = "clean" if self.is_clean else "not clean"
        return f"{self.path}: {verdict}{f' ({told})' if told else ''}."


def rules_text(rules: Sequence[Rule]) -> str:
    """A line a rule: its id, its severity where it is no error, and what it says."""
    width = max(len(rule.id) for rule in rules)
    return "\n".join(
        f"{rule.id:{width}}  {rule.sentence}{'' if rule.severity == 'error' else f' ({rule.severity})'}"
        for rule in rules
    )
