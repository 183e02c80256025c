"""Where something lasts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.signs.figures import Figures
from ava_pipeline.signs.finding import Finding, Severity


class Stretch(NamedTuple):
    """Neighbouring rows: positions of the first and the last."""

    first: int
    last: int

    def finding(  # noqa: PLR0913  # a finding's own fields, each with its name
        self,
        rows: Figures,
        *,
        sign: str,
        column: str | None,
        value: float | None,
        message: str,
        advice: str = "",
        severity: Severity = "warning",
    ) -> Finding:
        """A sign seen over these rows."""
        return Finding(
            sign=sign,
            severity=severity,
            column=column,
            batch_idx=int(rows.batch_idx[self.first]),
            batch_idx_end=int(rows.batch_idx[self.last]),
            epoch=int(rows.epoch[self.first]),
            value=value,
            message=message,
            advice=advice,
        )

    @property
    def rows(self) -> slice:
        """Of an array of the same table."""
        return slice(self.first, self.last + 1)

    @property
    def length(self) -> int:
        """How many rows."""
        return self.last - self.first + 1


def stretches(holds: NDArray[np.bool_], *, least: int = 1, bridge: int = 0) -> list[Stretch]:
    """Rows over which something holds.

    Args:
        holds: of each row.
        least: shorter stretches are left out.
        bridge: up to this many rows between two stretches make one of them.
    """
    positions = np.flatnonzero(holds)
    if not len(positions):
        return []
    breaks = np.flatnonzero(np.diff(positions) > bridge + 1)
    firsts = positions[np.concatenate(([0], breaks + 1))]
    lasts = positions[np.concatenate((breaks, [len(positions) - 1]))]
    return [
        Stretch(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True) if last - first + 1 >= least
    ]
