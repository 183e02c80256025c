"""Gradients left over from an earlier row: no backward pass has computed them since."""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress, count, repeat
from operator import and_, call, eq, is_, not_
from typing import NamedTuple
from weakref import ref

from torch import Tensor, nn

from ava_pipeline.collect.targets import TrainingTargets, num_changes


class _Row(NamedTuple):
    """Which tensors the gradients of a row were, without holding them, and how often each of them had been changed.

    `parameter_changes` are those of the parameters. For a missing gradient, the reference is `object`, whose call
    returns no gradient, and the changes are -1.
    """

    gradients: list[Callable[[], object]]
    changes: list[int]
    parameter_changes: Sequence[int]


class StaleGradients:
    """Finds gradients that are the same tensors as at the row before, with the same count of changes in place.

    A backward pass makes a new tensor, or adds in place, and zeroing in place is counted too. Only the replay of a CUDA
    graph computes gradients and changes no count. So such a gradient is stale

    - if others are new, and its parameter did not change either, so that no optimizer has used it;
    - if no optimizer holds its parameter, and others are new or no parameter has changed;
    - if the model no longer has its parameter.

    Rows that measure what one of several optimizers steps are compared with its own rows before.

    `find_gone` returns which of some positions are those of parameters that the model no longer has.
    """

    def __init__(self, targets: TrainingTargets, find_gone: Callable[[Sequence[int]], Sequence[int]]) -> None:
        self._find_gone = find_gone
        self._rows: dict[str | None, _Row] = {}
        self._searched: list[int] = []
        self._gone: Sequence[int] = ()
        self._parameters: Sequence[nn.Parameter] = targets.parameters
        self.follow(targets)

    def follow(self, targets: TrainingTargets) -> None:
        """Find them among the gradients of these targets; what is known of the same parameters stays."""
        if targets.parameters is not self._parameters:
            before = {id(parameter): position for position, parameter in enumerate(self._parameters)}
            places = [before.get(id(parameter)) for parameter in targets.parameters]
            self._rows = {name: _moved(row, places) for name, row in self._rows.items()}
            self._searched, self._gone = [], ()
        self._parameters = targets.parameters
        self._unowned = frozenset(position for position, held in enumerate(targets.optimizers_of()) if not held)

    def among(
        self, gradients: Sequence[Tensor | None], parameter_changes: Sequence[int], optimizer: str | None
    ) -> Iterable[int]:
        """The positions of stale gradients in a row of all optimizers, or of the one with this name."""
        # For every gradient of every row, so in C and not in a Python loop.
        is_missing = [*map(is_, gradients, repeat(None))]
        present = [*compress(gradients, map(not_, is_missing))] if any(is_missing) else gradients
        references: list[Callable[[], object]] = [*map(ref, present)]
        changes = [*map(num_changes, present)]
        if present is not gradients:
            for position in compress(count(), is_missing):
                references.insert(position, object)
                changes.insert(position, -1)
        row = _Row(references, changes, parameter_changes)
        before, self._rows[optimizer] = self._rows.get(optimizer), row
        if before is None:
            return ()
        is_same = map(is_, map(call, before.gradients), gradients)
        unchanged = [*compress(count(), map(and_, is_same, map(eq, before.changes, row.changes)))]
        return self._stale(unchanged, before, row) if unchanged else ()

    def _stale(self, unchanged: list[int], before: _Row, row: _Row) -> list[int]:
        has_new = len(unchanged) < sum(changes >= 0 for changes in row.changes)
        is_idle = [*map(eq, before.parameter_changes, row.parameter_changes)]
        if has_new:
            stale = [position for position in unchanged if is_idle[position] or position in self._unowned]
        else:  # a replay computed all of them, unless nothing happened at all
            stale = [position for position in unchanged if position in self._unowned and all(is_idle)]
        others = sorted(set(unchanged) - set(stale))
        if others != self._searched:
            self._searched, self._gone = others, self._find_gone(others) if others else ()
        return [*stale, *self._gone]


def _moved(row: _Row, places: Sequence[int | None]) -> _Row:
    """A row in which each position has what was at its place; nothing is known where that is None."""
    return _Row(
        [object if place is None else row.gradients[place] for place in places],
        [-1 if place is None else row.changes[place] for place in places],
        [-1 if place is None else row.parameter_changes[place] for place in places],
    )
