"""Holdout predictions: what the model predicts for the same held-out samples at each collected step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.predictions import check_distributions, id_column, mean_scores
from ava_pipeline.collect.samples import named
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.arrays import Bools, number_columns
from ava_pipeline.contract.builtin_tables import HOLDOUT_CLASSES, PRED_COLUMNS
from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.write.channel import Numbers

if TYPE_CHECKING:
    from ava_pipeline.collect.holdout import Holdout


class HoldoutPredictions(Measure):
    """Evaluates the model on the held-out samples; its table, which `holdout_table` makes, has a row for each."""

    table = HOLDOUT_CLASSES  # of pairs and two classes; each run has its own

    def __init__(self, targets: TrainingTargets, holdout: "Holdout", table: Table) -> None:
        super().__init__(targets)
        self._run_table = RunTable.of(table)
        self._holdout = holdout
        self._samples = holdout.samples

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Take every output of the model, sample by sample."""
        return Reading(self._holdout.outputs(snapshot.batch_idx).reshape(-1))

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Take what the model predicted before any of the batch's optimizers stepped."""
        return readings[0]

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:  # noqa: ARG002  # one layout
        """The rows of each step, in the order of the samples."""
        samples = self._samples
        num_steps, num_samples = len(numbers), len(samples.ids)
        outputs = np.array(numbers, dtype=np.float32).reshape(num_steps * num_samples, -1)
        labels = np.concatenate([samples.labels] * num_steps)
        predicted = self._scores(outputs, labels) if samples.kind == "scores" else _classes(outputs, labels)
        columns = zip(self.run_table.table.row_key, zip(*samples.ids, strict=True), strict=True)
        ids: dict[str, Values] = {name: pa.concat_arrays([id_column(one)] * num_steps) for name, one in columns}
        return ids | predicted

    def events(self, rows: pa.RecordBatch) -> Iterator[Event]:
        """Report predictions that are not finite: one event for the new rows."""
        batches, epochs, numbers = number_columns(rows)
        broken = {name: bad for name, (values, _) in numbers.items() if (bad := ~np.isfinite(values)).any()}
        if not broken:
            return
        bad_rows = np.flatnonzero(np.logical_or.reduce(list(broken.values())))
        first, last = int(bad_rows[0]), int(bad_rows[-1])
        of_first = next(name for name, bad in broken.items() if bad[first])
        yield Event(
            event="non_finite",
            severity="warning",
            batch_idx=int(batches[first]),
            batch_idx_end=int(batches[last]),
            epoch=int(epochs[first]),
            column=of_first,
            value=float(numbers[of_first][0][first]),
            message=f"{', '.join(broken)}: not finite in {len(bad_rows)} of {rows.num_rows} predictions for held-out "
            "samples.",
        )

    def _scores(self, outputs: NDArray[np.float32], labels: NDArray[Any]) -> dict[str, Values]:
        """Means and shares of distributions, renormalised in float64; nan if the model's output is not finite."""
        shares = outputs.astype(np.float64)
        is_finite = np.isfinite(shares).all(axis=1)
        rows = np.flatnonzero(is_finite) % len(self._samples.ids)
        ids = [named(self._samples.ids[row]) for row in rows]
        check_distributions(ids, shares[is_finite], "predicted", "Let forward return a softmax over the ten scores.")
        shares[~is_finite] = np.nan
        shares /= shares.sum(axis=1, keepdims=True)
        return {
            "gt_mean": mean_scores(labels),
            "pred_mean": mean_scores(shares),
            **dict(zip(PRED_COLUMNS, shares.T, strict=True)),
        }


def _classes(logits: NDArray[np.float32], labels: NDArray[Any]) -> dict[str, Values]:
    """The class of the largest logit, the first of several; null if a logit is nan."""
    is_unknown: Bools = np.logical_or.reduce(np.isnan(logits), axis=1)
    predictions = logits.argmax(axis=1).astype(np.int64)
    return {
        "label": labels,
        "prediction": pa.array(predictions, mask=is_unknown),
        **{f"logit_{index}": logit for index, logit in enumerate(np.ascontiguousarray(logits.T))},
        "correct": pa.array(predictions == labels, mask=is_unknown),
    }
