"""Series that are computed from tables: how far weights move, and how well the held-out samples are predicted."""

import numpy as np

from ava_pipeline.contract.builtin_tables import BATCH_STATS, WEIGHT_DELTAS, WEIGHT_NORMS
from ava_pipeline.read.holdout import MAE
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.series import Series, breaks_of, columns_of
from ava_pipeline.signs.evidence import TableValues
from ava_pipeline.signs.weights import num_batches_of, update_ratio_of

DELTAS, LABELS = WEIGHT_DELTAS.name, BATCH_STATS.name
_SHARE, _OF_SCORES = "_pct", ("_mean", "_std")


def update_ratios(run: RunData) -> list[Series]:
    """How far each group moved since the row before, as a share of its norm, with the batches that a row spans."""
    norms, deltas = run.table(WEIGHT_NORMS.name), run.table(DELTAS)
    if norms is None or deltas is None:
        return []
    weights, moved = TableValues(norms), TableValues(deltas)
    breaks = breaks_of(moved.batch_idx, run.manifest)
    series = []
    for column in moved.values:
        ratio = update_ratio_of(weights, moved, column)
        if ratio is not None and not ratio.is_null.all():
            series.append(
                Series(
                    run=run.name,
                    column=column,
                    batches=moved.batch_idx,
                    epochs=moved.epoch,
                    values=ratio.values,
                    is_null=ratio.is_null,
                    breaks=breaks,
                    num_batches=num_batches_of(moved),
                )
            )
    return series


def label_shares(run: RunData) -> list[Series]:
    """The share of each class among the labels of a batch, in percent."""
    return columns_of(run, LABELS, is_log=False, is_wanted=lambda name: name.endswith(_SHARE))


def label_scores(run: RunData) -> list[Series]:
    """The mean and the spread of the labels that are scores."""
    return columns_of(run, LABELS, is_log=False, is_wanted=lambda name: name.endswith(_OF_SCORES))


def holdout_series(run: RunData, *, of_scores: bool) -> list[Series]:
    """The means over the held-out samples: of classes, or of scores; none if the samples are not of that kind."""
    found = run.holdout
    if found is None or (MAE in found.values) != of_scores:
        return []
    breaks = breaks_of(found.batch_idx, run.manifest)
    measured = np.zeros(len(found.batch_idx), dtype=np.bool_)
    return [
        Series(run.name, name, found.batch_idx, found.epoch, values, measured, breaks, is_log=False)
        for name, values in found.values.items()
    ]
