"""What a sign says of a run: where it shows, the figure that tells, and what to try."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]
GRAVITY: Mapping[Severity, int] = {"error": 2, "warning": 1, "info": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sign, seen over a range of batches.

    Attributes:
        sign: stable id, e.g. `backbone-not-learning`.
        severity: an error stops or spoils the training, a warning is worth a look, an info is said for its own sake.
        column: the column that shows it, where it is one.
        batch_idx: first collected batch concerned, 1-based; 0 where there is none.
        batch_idx_end: last collected batch concerned.
        epoch: 0-based epoch of the first batch.
        value: the figure that tells, where there is one.
        message: one sentence: what is seen, with the figures.
        advice: what to try; empty where nothing is amiss.
        sample_ids: what the first batch consisted of, where the run recorded it.
    """

    sign: str
    severity: Severity
    column: str | None
    batch_idx: int
    batch_idx_end: int
    epoch: int
    value: float | None
    message: str
    advice: str
    sample_ids: tuple[str, ...] = ()

    @property
    def event(self) -> str:
        """The sign's name among those of events: in snake case."""
        return self.sign.replace("-", "_")


def collected_steps(num: int) -> str:
    """So many of them, in words."""
    return f"{num} collected step{'s' * (num != 1)}"
