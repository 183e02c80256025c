"""Weights that do not move, and updates that are too large or too small for the weights that they change.

A row of `weight_deltas` holds the updates of `num_batches` batches. They add up to something between √n times one
update, if their directions are independent, and n times, if all are the same: a sign must hold for both.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ava_pipeline.contract.arrays import Bools, Floats, Integers, integers
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Group
from ava_pipeline.signs.evidence import Evidence, LastingState, TableValues
from ava_pipeline.signs.thresholds import Thresholds

NUM_BATCHES = "num_batches"
# At the end of a schedule a rate may be above 0 and yet change nothing, on purpose.
_LEAST_RATE = 1e-3


class UpdateRatio(NamedTuple):
    """How far a group moved since the row before, as a share of its norm: float64 [rows of `weight_deltas`].

    `is_null` is True where the distance or the norm was not measured, or the norm is 0.
    """

    values: Floats
    is_null: Bools


def update_ratio_of(norms: TableValues, deltas: TableValues, column: str) -> UpdateRatio | None:
    """The ratio of a column of `weight_deltas` to the same column of `weight_norms`; None if one lacks it."""
    if column not in norms.values or column not in deltas.values:
        return None
    moved, norm = deltas.values[column], norms.at_batches(column, deltas.batch_idx)
    is_null = ~deltas.is_measured[column] | (norm == 0) | (np.isnan(norm) & ~np.isnan(moved))
    with np.errstate(invalid="ignore"):  # inf / inf, of weights that are not finite
        values = np.divide(moved, norm, out=np.full(len(moved), np.nan), where=~is_null)
    return UpdateRatio(values, is_null)


def num_batches_of(deltas: TableValues) -> Integers:
    """How many batches each row of `weight_deltas` spans [rows]; 0 if that is null."""
    if NUM_BATCHES not in deltas.rows.column_names:
        return np.zeros(deltas.num_rows, dtype=np.int64)
    return integers(deltas.rows, NUM_BATCHES)


_NOT_MOVING = LastingState(
    sign="weights-not-moving",
    message="{column} does not move: its weights are exactly the same over {num_rows} collected steps, although its "
    "learning rate is above 0.",
    advice="Check that optimizer.step() is called and not skipped by a GradScaler, that the model that is trained is "
    "the one given to the collector, and that gradients are not 0. In bfloat16 or float16, updates that are smaller "
    "than the numbers can resolve are lost: keep the weights in float32.",
    bridge=0,
)


def weights_not_moving(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The weights of a trained group are bit for bit the same, row after row, though its rate is above 0.

    A group is left out where its parent does not move either.
    """
    holds = {column: judged & (run.weight_deltas.values[column] == 0) for column, judged in _judged_groups(run).items()}
    for column, still in _outermost(run, holds).items():
        values = run.weight_deltas.values[column]
        yield from _NOT_MOVING.findings(run.weight_deltas, column, still, values, least_rows=limits.least_rows)


_TOO_LARGE = LastingState(
    sign="update-ratio",
    message="updates are too large: {column} moves by {value:.3g} of its norm in each batch (median of {num_rows} "
    "collected steps), even if all updates between two rows have the same direction.",
    advice="Lower the learning rate, warm it up, or clip the gradients.",
    bridge=0,
)
_TOO_SMALL = LastingState(
    sign="update-ratio",
    message="updates are very small: {column} moves by {value:.3g} of its norm in each batch (median of {num_rows} "
    "collected steps), even if the updates between two rows have independent directions.",
    advice="Check the learning rate, and that gradients are not tiny. In float32, most updates are lost to rounding.",
    bridge=0,
)


def update_ratio(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The updates of a group are large compared with its weights, or so small that rounding loses them.

    The second is information: at the end of a training it may be wanted.
    """
    num = num_batches_of(run.weight_deltas).astype(np.float64)
    large, small, ratios = {}, {}, {}
    for column, judged in _judged_groups(run).items():
        found = update_ratio_of(run.weight_norms, run.weight_deltas, column)
        if found is not None:
            ratios[column] = np.where(judged & ~found.is_null, found.values, np.nan)
            large[column] = ratios[column] > limits.update_above * num
            small[column] = (ratios[column] > 0) & (ratios[column] < limits.update_below * np.sqrt(num))
    rows = run.weight_deltas
    num = np.maximum(num, 1)
    for column, holds in _outermost(run, large).items():
        per_batch = ratios[column] / num
        yield from _TOO_LARGE.findings(rows, column, holds, per_batch, least_rows=limits.least_rows)
    for column, holds in _outermost(run, small).items():
        per_batch = ratios[column] / np.sqrt(num)
        for finding in _TOO_SMALL.findings(rows, column, holds, per_batch, least_rows=limits.least_rows):
            yield replace(finding, severity="info")


def _judged_groups(run: Evidence) -> dict[str, Bools]:
    """Of each group, the rows of `weight_deltas` in which it should have moved by updates of a known rate above 0."""
    deltas = run.weight_deltas
    before = deltas.batch_idx - num_batches_of(deltas)  # the row whose own update is the first in the difference
    judged = {}
    for column in deltas.values:
        group = run.groups.get(column)
        if group is not None and column in run.weight_norms.values:
            norm = run.weight_norms.at_batches(column, deltas.batch_idx)
            is_judged = deltas.is_measured[column] & (norm > 0) & _is_trained(group, deltas)
            rates = [_has_rate(run, rate, before) for rate in group.learning_rates if rate in run.rates.values]
            judged[column] = is_judged & np.any([np.zeros_like(is_judged), *rates], axis=0)
    return judged


def _has_rate(run: Evidence, rate: str, batches: Integers) -> Bools:
    """Whether the rate at each batch is above 0, and not negligible beside the highest before it."""
    values = run.rates.at_batches(rate, batches)
    highest = np.fmax(np.fmax.accumulate(values), run.highest_rates.get(rate, 0.0)) if len(values) else values
    has_rate: Bools = (values > 0) & (values >= _LEAST_RATE * highest)
    return has_rate


def _is_trained(group: Group, rows: TableValues) -> Bools:
    """Whether any parameter of the group requires gradients, from one row to the next, by the manifest alone."""
    is_trained = np.full(rows.num_rows, group.trainable is True or bool(group.spans))
    for span, end in zip(group.spans, [*(span.first_batch for span in group.spans[1:]), np.inf], strict=False):
        is_in_span = (rows.batch_idx >= span.first_batch) & (rows.batch_idx < end)
        if span.trainable is not True:
            is_trained &= ~is_in_span
    return is_trained


def _outermost(run: Evidence, holds: dict[str, Bools]) -> dict[str, Bools]:
    """Each state only where it does not hold for the parent of the group as well."""
    parents = {column: run.groups[column].parent for column in holds}
    return {
        column: state & ~holds[parent] if (parent := parents[column]) is not None and parent in holds else state
        for column, state in holds.items()
    }
