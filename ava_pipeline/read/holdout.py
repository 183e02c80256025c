"""How well the held-out samples are predicted, from one collected step to the next."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import BatchIndices, Floats, Integers, bools, floats, integers, null_mask

ACCURACY, CONFIDENCE = "accuracy", "confidence"
MAE, PRED_MEAN = "mae", "pred_mean"
_KEYS = ("batch_idx", "epoch")
_LOGIT = "logit_"


class HoldoutByBatch(NamedTuple):
    """Means over the held-out samples, in the order of their batches.

    `values` holds by name float64 [batches]. Of classes: `accuracy`, the share of samples whose prediction is the
    label, and `confidence`, the mean of the softmax of the predicted class. Of scores: `mae`, the mean absolute error
    of the mean score, and `pred_mean`, the mean predicted score. A mean is nan if it is that of any sample.
    """

    batch_idx: BatchIndices
    epoch: Integers
    num_samples: Integers
    values: dict[str, Floats]


def holdout_columns(names: Sequence[str]) -> list[str]:
    """The columns that `holdout_by_batch` needs, of those of the table; empty if it is no table of predictions."""
    of_classes = ["correct", *(name for name in names if name.startswith(_LOGIT))]
    of_scores = ["gt_mean", "pred_mean"]
    found: list[list[str]] = [wanted for wanted in (of_classes, of_scores) if set(wanted) <= set(names)]
    return [*_KEYS, *found[0]] if found else []


def holdout_by_batch(parts: Iterable[pa.RecordBatch | pa.Table]) -> HoldoutByBatch | None:
    """The means of each batch, of rows with the `holdout_columns` that may come in parts; None without rows.

    The first and the last batch are left out if they have fewer samples than their neighbour: the end of a file that is
    read may begin, and a file that is being written may end, within a batch.
    """
    sums = [_sums(part) for part in parts if part.num_rows]
    if not sums:
        return None
    names = list(sums[0].values)
    all_batches = np.concatenate([part.batch_idx for part in sums])
    batch_idx, firsts, places = np.unique(all_batches, return_index=True, return_inverse=True)
    epoch = np.concatenate([part.epoch for part in sums])[firsts]
    num = np.zeros(len(batch_idx), dtype=np.int64)
    np.add.at(num, places, np.concatenate([part.num_samples for part in sums]))
    values = {}
    for name in names:
        total = np.zeros(len(batch_idx))
        np.add.at(total, places, np.concatenate([part.values[name] for part in sums]))
        values[name] = total / num
    first = int(len(num) > 1 and num[0] < num[1])
    end = len(num) - int(len(num) > first + 1 and num[-1] < num[-2])
    whole = slice(first, end)
    return HoldoutByBatch(
        batch_idx[whole], epoch[whole], num[whole], {name: one[whole] for name, one in values.items()}
    )


def _sums(rows: pa.RecordBatch | pa.Table) -> HoldoutByBatch:
    """The sums over the rows of each batch, instead of their means."""
    batches, epochs = (integers(rows, name) for name in _KEYS)
    starts = np.flatnonzero(np.diff(batches, prepend=batches[0] - 1))
    num = np.diff(np.append(starts, len(batches)))
    values = {name: np.add.reduceat(one, starts) for name, one in _by_sample(rows).items()}
    return HoldoutByBatch(batches[starts], epochs[starts], num, values)


def _by_sample(rows: pa.RecordBatch | pa.Table) -> dict[str, Floats]:
    names = rows.schema.names
    if "correct" not in names:
        predicted = floats(rows, "pred_mean")
        return {MAE: np.abs(predicted - floats(rows, "gt_mean")), PRED_MEAN: predicted}
    correct = rows.column("correct")
    is_correct = np.where(null_mask(correct), np.nan, bools(correct))
    logits = np.stack([floats(rows, name) for name in names if name.startswith(_LOGIT)])
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, of logits that are not finite
        confidence = 1 / np.exp(logits - logits.max(axis=0)).sum(axis=0)
    return {ACCURACY: is_correct, CONFIDENCE: confidence}
