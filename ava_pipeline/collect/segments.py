"""Numbers of pieces of tensors, combined for each tensor."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from ava_pipeline.contract.arrays import Floats, Integers


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Which pieces belong together.

    Attributes:
        order: int64 [pieces], puts pieces of one owner behind each other.
        starts: int64 [owners], where each owner's pieces begin in that order.
        positions: int64 [owners], the owners, rising.
    """

    order: Integers
    starts: Integers
    positions: Integers

    @classmethod
    def of(cls, owners: Integers) -> Self:
        """The pieces of each owner; a piece whose owner is -1 is left out."""
        order = np.argsort(owners, kind="stable")
        order = order[owners[order] >= 0]
        positions, starts = np.unique(owners[order], return_index=True)
        return cls(order, starts, positions)

    @property
    def sizes(self) -> Integers:
        """How many pieces each owner has."""
        return np.diff(self.starts, append=len(self.order))

    def reduce(self, how: np.ufunc, ordered: Floats) -> Floats:
        """Combine pieces that were put in `order`, (steps, pieces), to (steps, owners): with `np.add` for example.

        There is at least one owner.
        """
        combined: Floats = how.reduceat(ordered, self.starts, axis=1)
        return combined
