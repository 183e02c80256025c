"""Labels whose shares vary between batches, or do not vary at all, in ways that chance does not explain."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ava_pipeline.contract.arrays import Floats, float_columns
from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, RowRange, TableValues, collected_steps
from ava_pipeline.signs.thresholds import Thresholds

_CLASS = re.compile(r"(?P<label>.+)_(?P<index>\d+)_pct")
# Chance alone makes shares vary a little more or less than a binomial distribution says if samples come in groups,
# such as several pairs of one series: only twice the variance counts.
_LEAST_DISPERSION = 2.0
# A majority class is worth a sentence from here on, as a share above that of equal classes.
_LEAST_MAJORITY = 0.1

_SORTED_ADVICE = "Shuffle the training data, and check that the sampler draws from all of it."
_MAJORITY_ADVICE = (
    "A model that always predicts this class is right as often. If the classes should be equally frequent, as in pairs "
    "whose order is arbitrary, check how the labels are made."
)
_ALIKE_ADVICE = (
    "Check that the loader does not return the same batch again and again. A sampler that balances the classes makes "
    "batches alike on purpose."
)


class _Label(NamedTuple):
    """The counts of one label's classes, float64 [classes, rows], in the rows that have them."""

    name: str
    counts: Floats
    rows: TableValues


def label_bias(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The shares of the classes vary between batches beyond chance, or one class has more than its share.

    The counts of batches that were drawn at random are binomial: over R batches, their chi-square statistic has the
    mean R - 1. Its variance follows from the fourth moment of a binomial distribution: 2 + (1 - 6pq) / npq for a batch
    of n samples, p of them of the class, q = 1 - p. A class of which a batch has less than one is not judged.
    Sources: https://en.wikipedia.org/wiki/Pearson's_chi-squared_test, .../wiki/Binomial_distribution#Higher_moments
    """
    for label in _labels(run, limits):
        yield from _varying(label, limits)
        yield from _majority(label, limits)


def _varying(label: _Label, limits: Thresholds) -> Iterator[Finding]:
    sizes = label.counts.sum(axis=0)
    shares = label.counts.sum(axis=1) / sizes.sum()
    degrees = len(sizes) - 1
    for index, share in enumerate(shares):
        if not 0 < share < 1 or sizes.mean() * share < 1:
            continue
        squares = (label.counts[index] - sizes * share) ** 2 / (sizes * share * (1 - share))
        spread = share * (1 - share)
        variance = degrees * float(np.mean(2 + (1 - 6 * spread) / (sizes * spread)))
        deviations = (float(squares.sum()) - degrees) / math.sqrt(variance)
        if deviations <= limits.label_deviations or squares.sum() <= _LEAST_DISPERSION * degrees:
            continue
        of_batches = 100 * label.counts[index] / sizes
        in_order = np.sort(of_batches)  # `np.quantile` imports a module, which the background thread must not do
        low, high = in_order[len(in_order) // 10], in_order[-1 - len(in_order) // 10]
        message = (
            f"{label.name} is {index} in {low:.3g} % to {high:.3g} % of four in five batches, which vary more than "
            f"those of shuffled data: {deviations:.3g} standard deviations."
        )
        yield _over_all(label.rows).finding(
            label.rows,
            sign="label-bias",
            column=f"{label.name}_{index}_pct",
            value=deviations,
            message=message,
            advice=_SORTED_ADVICE,
        )
        return  # of two classes, the other one varies as much


def _majority(label: _Label, limits: Thresholds) -> Iterator[Finding]:
    num_classes, num = len(label.counts), float(label.counts.sum())
    equal = 1 / num_classes
    index = int(label.counts.sum(axis=1).argmax())
    share = float(label.counts[index].sum()) / num
    deviations = (share - equal) / math.sqrt(equal * (1 - equal) / num)
    if share - equal > _LEAST_MAJORITY and deviations > limits.label_deviations:
        yield _over_all(label.rows).finding(
            label.rows,
            sign="label-bias",
            column=f"{label.name}_{index}_pct",
            value=100 * share,
            message=f"{label.name} is {index} in {100 * share:.3g} % of the samples of {num_classes} classes.",
            advice=_MAJORITY_ADVICE,
            severity="info",
        )


def labels_alike(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """All batches have the same labels, though they are not balanced: the same batch may come again and again."""
    for label in _labels(run, limits):
        shares = label.counts / label.counts.sum(axis=0)
        is_one_class, is_balanced = shares[:, 0].max() == 1, np.ptp(shares[:, 0]) == 0
        if not is_one_class and not is_balanced and (np.ptp(shares, axis=1) == 0).all():
            classes = ", ".join(f"{100 * share:.3g} %" for share in shares[:, 0])
            yield _alike(label.rows, f"{label.name}_0_pct", f"the classes of {label.name} are {classes}")
    for column, means in run.labels.values.items():
        if column.endswith("_mean") and len(means) >= limits.least_rows and bool(np.ptp(means) == 0):
            yield _alike(run.labels, column, f"{column} is {means[0]:.6g}")


def _alike(rows: TableValues, column: str, what: str) -> Finding:
    return _over_all(rows).finding(
        rows,
        sign="labels-alike",
        column=column,
        value=float(rows.values[column][0]) if column in rows.values else None,
        message=f"{what} in each of {collected_steps(rows.num_rows)}: the batches are all alike.",
        advice=_ALIKE_ADVICE,
    )


def _labels(run: Evidence, limits: Thresholds) -> Iterator[_Label]:
    """Every label with classes that enough rows have."""
    table = run.labels
    if "batch_size" not in table.rows.column_names:
        return
    sizes = float_columns(table.rows, ["batch_size"])["batch_size"]
    columns: Mapping[str, list[str]] = {}
    for column in table.values:
        found = _CLASS.fullmatch(column)
        if found:
            columns = {**columns, found["label"]: [*columns.get(found["label"], []), column]}
    for name, of_label in columns.items():
        counts = np.stack([table.values[column] * sizes / 100 for column in of_label])
        is_counted = np.isfinite(counts).all(axis=0) & (counts.sum(axis=0) > 0)
        if is_counted.sum() >= limits.least_rows:
            places = np.flatnonzero(is_counted)
            rows = TableValues(table.rows.slice(int(places[0]), int(places[-1] - places[0]) + 1))
            yield _Label(name, np.round(counts[:, is_counted]), rows)


def _over_all(rows: TableValues) -> RowRange:
    return RowRange(0, rows.num_rows - 1)
