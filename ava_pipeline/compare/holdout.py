"""The held-out samples of two runs, matched by batch and ids: where do their predictions part?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from ava_pipeline.compare.columns import Side, side_of, unequal
from ava_pipeline.compare.rows import Matched, match_rows
from ava_pipeline.compare.values import FINITE, NULL, Value
from ava_pipeline.contract.arrays import Bools, Floats, Integers, take_rows
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import MisuseError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_FURTHEST = 10
_LOGIT = "logit_"
_MEAN = "pred_mean"
_PREDICTION, _LABEL = "prediction", "label"


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out sample in the batch in which its outputs are furthest apart.

    Attributes:
        ids: its ids, as texts.
        batch_idx: the batch.
        distance: the largest absolute difference of its outputs; None if one of them is not a finite number in one run
            alone, which counts as furthest.
        outputs_a: its logits in run A, or its predicted mean score.
        outputs_b: those in run B.
        prediction_a: the predicted class in run A; None for scores.
        prediction_b: that in run B.
    """

    ids: tuple[str, ...]
    batch_idx: int
    distance: float | None
    outputs_a: tuple[Value, ...]
    outputs_b: tuple[Value, ...]
    prediction_a: Value
    prediction_b: Value


@dataclass(frozen=True, slots=True)
class HoldoutBatch:
    """One shared batch: how many predictions differ, and how many are correct.

    Attributes:
        batch_idx: the batch.
        num_samples: samples that both runs have in it.
        num_other_prediction: of them, those for which the runs predict another class; None for scores.
        num_correct_a: those that run A predicts correctly; None for scores.
        num_correct_b: those that run B does.
        largest_distance: the largest distance of a sample's outputs; None if none can be compared, or if one output is
            a finite number in one run alone.
    """

    batch_idx: int
    num_samples: int
    num_other_prediction: int | None
    num_correct_a: int | None
    num_correct_b: int | None
    largest_distance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutComparison:
    """The held-out samples of two runs.

    Attributes:
        outputs: the columns that are compared: `logit_0`, `logit_1`, ..., or `pred_mean`.
        num_samples: samples that both runs have.
        ids_only_a: ids of samples that only run A has.
        ids_only_b: ids of samples that only run B has.
        num_other_label: shared samples whose label differs.
        batches: the shared batches, in order.
        num_only_a: batches that only run A recorded.
        num_only_b: batches that only run B recorded.
        first_unequal: the first batch at which outputs are not equal bit for bit; None if there is none.
        first_other_prediction: the first batch at which a predicted class differs; None if none does, and for scores.
        furthest: the samples whose outputs are furthest apart, each in the batch in which it is.
    """

    outputs: tuple[str, ...]
    num_samples: int
    ids_only_a: tuple[tuple[str, ...], ...]
    ids_only_b: tuple[tuple[str, ...], ...]
    num_other_label: int
    batches: tuple[HoldoutBatch, ...]
    num_only_a: int
    num_only_b: int
    first_unequal: int | None
    first_other_prediction: HoldoutBatch | None
    furthest: tuple[Sample, ...]


class _Outputs(NamedTuple):
    """The outputs of the matched rows.

    `distance` [rows] is the largest absolute difference: inf if only one of the two values is a finite number, nan if
    nothing can be compared.
    """

    a: list[Side]
    b: list[Side]
    is_unequal: Bools
    distance: Floats


def compare_holdout(a: pa.Table, b: pa.Table, declared: tuple[RunTable, RunTable]) -> HoldoutComparison:
    """Compare `holdout_predictions` of two runs.

    Args:
        a: the rows of run A.
        b: the rows of run B.
        declared: the declarations of both tables, which name the columns of the ids.

    Raises:
        MisuseError: the tables have other ids or other outputs, so that no sample can be matched.
    """
    key, outputs = _shared_form(a, b, declared)
    matched = match_rows(a, b, key)
    rows_a, rows_b = take_rows(a, matched.in_a), take_rows(b, matched.in_b)
    found = _outputs(rows_a, rows_b, outputs)
    batches = _by_batch(matched, rows_a, rows_b, found.distance)
    all_batches = match_rows(a.select(["batch_idx"]), b.select(["batch_idx"]))
    num_batches_a, num_batches_b = (len(np.unique(rows.column("batch_idx"))) for rows in (a, b))
    ids_a, ids_b = _ids(a, key), _ids(b, key)
    return HoldoutComparison(
        outputs=outputs,
        num_samples=len(ids_a & ids_b),
        ids_only_a=tuple(sorted(ids_a - ids_b)),
        ids_only_b=tuple(sorted(ids_b - ids_a)),
        num_other_label=_num_other_label(matched, rows_a, rows_b),
        batches=batches,
        num_only_a=num_batches_a - all_batches.num_rows,
        num_only_b=num_batches_b - all_batches.num_rows,
        first_unequal=int(matched.batches[np.argmax(found.is_unequal)]) if found.is_unequal.any() else None,
        first_other_prediction=next((batch for batch in batches if batch.num_other_prediction), None),
        furthest=_furthest(matched, rows_a, rows_b, found),
    )


def _shared_form(
    a: pa.Table, b: pa.Table, declared: tuple[RunTable, RunTable]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    keys = [table.table.row_key for table in declared]
    outputs = [_output_columns(rows) for rows in (a, b)]
    for what, (one, other) in (("ids", keys), ("outputs", outputs)):
        if one != other:
            raise MisuseError(
                f"the held-out samples of A have the {what} {', '.join(one) or 'none'}, those of B "
                f"{', '.join(other) or 'none'}, so they are not compared: compare runs whose set_holdout() "
                "had the same kind of samples."
            )
    return keys[0], outputs[0]


def _output_columns(rows: pa.Table) -> tuple[str, ...]:
    logits = tuple(name for name in rows.column_names if name.startswith(_LOGIT))
    return logits or tuple(name for name in rows.column_names if name == _MEAN)


def _ids(rows: pa.Table, key: Sequence[str]) -> set[tuple[str, ...]]:
    columns = [rows.column(name).cast(pa.string()).to_pylist() for name in key]
    return {tuple(map(str, ids)) for ids in zip(*columns, strict=True)}


def _outputs(a: pa.Table, b: pa.Table, names: Sequence[str]) -> _Outputs:
    one = [side_of(a.column(name)) for name in names]
    other = [side_of(b.column(name)) for name in names]
    is_unequal = np.zeros(a.num_rows, np.bool_)
    distance: Floats = np.full(a.num_rows, np.nan)
    for first, second in zip(one, other, strict=True):
        is_unequal |= unequal(first, second)
        distance = np.fmax(distance, _distance(first, second))
    return _Outputs(one, other, is_unequal, distance)


def _distance(a: Side, b: Side) -> Floats:
    both_finite = (a.kinds == FINITE) & (b.kinds == FINITE)
    both_measured = (a.kinds != NULL) & (b.kinds != NULL)
    with np.errstate(invalid="ignore", over="ignore"):
        difference: Floats = np.abs(a.numbers - b.numbers)
    difference = np.where(both_finite, difference, np.nan)
    return np.where(both_measured & (a.kinds != b.kinds), np.inf, difference)


def _by_batch(matched: Matched, a: pa.Table, b: pa.Table, distance: Floats) -> tuple[HoldoutBatch, ...]:
    batches, starts, counts = np.unique(matched.batches, return_index=True, return_counts=True)
    if not len(batches):
        return ()
    is_other = _is_other_prediction(a, b)
    correct = [_is_correct(rows) for rows in (a, b)]
    largest = np.fmax.reduceat(distance, starts)
    other, correct_a, correct_b = (
        [None] * len(batches) if mask is None else np.add.reduceat(mask.astype(np.int64), starts).tolist()
        for mask in (is_other, *correct)
    )
    return tuple(
        HoldoutBatch(
            batch_idx=int(batch),
            num_samples=int(counts[place]),
            num_other_prediction=other[place],
            num_correct_a=correct_a[place],
            num_correct_b=correct_b[place],
            largest_distance=float(largest[place]) if np.isfinite(largest[place]) else None,
        )
        for place, batch in enumerate(batches)
    )


def _is_other_prediction(a: pa.Table, b: pa.Table) -> Bools | None:
    """Where both predict a class [rows], and not the same."""
    if _PREDICTION not in a.column_names or _PREDICTION not in b.column_names:
        return None
    one, other = side_of(a.column(_PREDICTION)), side_of(b.column(_PREDICTION))
    both = (one.kinds == FINITE) & (other.kinds == FINITE)
    return np.asarray(both & (one.numbers != other.numbers), dtype=np.bool_)


def _is_correct(rows: pa.Table) -> Bools | None:
    if _PREDICTION not in rows.column_names or _LABEL not in rows.column_names:
        return None
    prediction, label = side_of(rows.column(_PREDICTION)), side_of(rows.column(_LABEL))
    both = (prediction.kinds == FINITE) & (label.kinds == FINITE)
    return np.asarray(both & (prediction.numbers == label.numbers), dtype=np.bool_)


def _num_other_label(matched: Matched, a: pa.Table, b: pa.Table) -> int:
    truths = [name for name in (_LABEL, "gt_mean") if name in a.column_names and name in b.column_names]
    is_other = np.zeros(a.num_rows, np.bool_)
    for name in truths:
        is_other |= unequal(side_of(a.column(name)), side_of(b.column(name)))
    return len(np.unique(matched.keys[is_other]))


def _furthest(matched: Matched, a: pa.Table, b: pa.Table, found: _Outputs) -> tuple[Sample, ...]:
    """For each sample the row in which it is furthest; of these, the furthest ones."""
    comparable = np.flatnonzero(found.distance > 0)  # nan is not above 0
    order: NDArray[np.intp] = comparable[np.argsort(-found.distance[comparable], kind="stable")]
    _, first_of_each = np.unique(matched.keys[order], return_index=True)
    rows: Integers = order[np.sort(first_of_each)[:NUM_FURTHEST]]
    return tuple(_sample(int(row), matched, (a, b), found) for row in rows)


def _sample(row: int, matched: Matched, tables: tuple[pa.Table, pa.Table], found: _Outputs) -> Sample:
    predictions = [
        rows.column(_PREDICTION)[row].as_py() if _PREDICTION in rows.column_names else None for rows in tables
    ]
    distance = float(found.distance[row])
    return Sample(
        ids=matched.names[int(matched.keys[row])],
        batch_idx=int(matched.batches[row]),
        distance=distance if np.isfinite(distance) else None,
        outputs_a=tuple(side.value(row) for side in found.a),
        outputs_b=tuple(side.value(row) for side in found.b),
        prediction_a=predictions[0],
        prediction_b=predictions[1],
    )
