"""Labels that vary more than chance explains, or not at all, and healthy ones that vary as they should."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import NO_ROWS, Evidence, TableValues
from ava_pipeline.signs.registry import listed_findings
from ava_pipeline.signs.thresholds import Thresholds

NUM_ROWS, SIZE = 200, 32


def findings_in(first_class: NDArray[np.int64], sizes: NDArray[np.int64] | int = SIZE) -> list[Finding]:
    """The findings in batches with so many samples of the first of two classes."""
    num_rows = len(first_class)
    size = np.broadcast_to(sizes, num_rows)
    labels = pa.table({
        "batch_idx": pa.array(np.arange(1, num_rows + 1)),
        "epoch": pa.array(np.zeros(num_rows, dtype=np.int64)),
        "batch_size": pa.array(size),
        "winner_0_pct": pa.array(100 * first_class / size),
        "winner_1_pct": pa.array(100 * (size - first_class) / size),
    })  # fmt: skip
    none = TableValues(NO_ROWS)
    run = Evidence(norms=none, rates=none, steps=none, groups={}, labels=TableValues(labels))
    return listed_findings(run, Thresholds())


def drawn(
    share: float | NDArray[np.float64], seed: int = 0, sizes: NDArray[np.int64] | int = SIZE
) -> NDArray[np.int64]:
    """Counts of the first class in batches drawn at random."""
    return np.random.default_rng(seed).binomial(sizes, np.broadcast_to(share, NUM_ROWS))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.5, 0.45, 0.02])
def test_batches_drawn_at_random_are_no_warning(share: float, seed: int) -> None:
    """Also of a rare class, whose majority is information."""
    found = findings_in(drawn(share, seed))
    assert [one for one in found if one.severity != "info"] == []
    assert bool(found) == (share < 0.4)


def test_a_majority_is_information_with_its_share() -> None:
    """What a model that always predicts it reaches."""
    (finding,) = findings_in(drawn(0.8))
    assert (finding.id, finding.severity, finding.column) == ("label-bias", "info", "winner_0_pct")
    assert finding.value == pytest.approx(80, abs=1)


@pytest.mark.parametrize(
    "share",
    [
        np.repeat([0.3, 0.7], NUM_ROWS // 2),  # a loader that is not shuffled
        np.tile([0.2, 0.8], NUM_ROWS // 2),
        np.linspace(0.2, 0.8, NUM_ROWS),
    ],
)
def test_shares_that_vary_more_than_chance_are_a_warning(share: NDArray[np.float64]) -> None:
    """In one step, back and forth, and as a drift; the number of deviations is that of the chi-square statistic."""
    counts = drawn(share)
    (finding,) = [one for one in findings_in(counts) if one.severity == "warning"]
    assert (finding.id, finding.batch_idx, finding.batch_idx_end) == ("label-bias", 1, NUM_ROWS)
    pooled = counts.sum() / (SIZE * NUM_ROWS)
    spread = pooled * (1 - pooled)
    squares = ((counts - SIZE * pooled) ** 2 / (SIZE * spread)).sum()
    variance = (NUM_ROWS - 1) * (2 + (1 - 6 * spread) / (SIZE * spread))
    assert finding.value == pytest.approx((squares - NUM_ROWS + 1) / np.sqrt(variance))


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_data_of_many_classes_is_no_warning(num_classes: int, seed: int) -> None:
    """Most of the classes are in no batch at all, and those that are vary by whole samples."""
    labels = np.random.default_rng(seed).integers(0, num_classes, (NUM_ROWS, 16))
    counts = np.stack([(labels == index).sum(axis=1) for index in range(num_classes)])
    columns = {f"y_{index}_pct": pa.array(100 * row / 16) for index, row in enumerate(counts)}
    keys = {"batch_idx": np.arange(1, NUM_ROWS + 1), "epoch": np.zeros(NUM_ROWS, dtype=np.int64)}
    sizes = {"batch_size": pa.array(np.full(NUM_ROWS, 16))}
    rows = pa.table({**{name: pa.array(key) for name, key in keys.items()}, **sizes, **columns})
    none = TableValues(NO_ROWS)
    run = Evidence(norms=none, rates=none, steps=none, groups={}, labels=TableValues(rows))
    assert [one for one in listed_findings(run, Thresholds()) if one.severity != "info"] == []


def test_batches_of_different_sizes_vary_as_they_may() -> None:
    """The last batch of an epoch is smaller."""
    sizes = np.where(np.arange(NUM_ROWS) % 10 == 9, 3, SIZE)
    assert findings_in(drawn(0.5, sizes=sizes), sizes) == []


def test_batches_that_are_all_alike_are_a_warning() -> None:
    """As of a loader that returns the same batch again and again."""
    (finding,) = [one for one in findings_in(np.full(NUM_ROWS, 13)) if one.severity == "warning"]
    assert finding.id == "labels-alike"
    assert "40.6 %, 59.4 %" in finding.message


def test_balanced_batches_are_alike_on_purpose() -> None:
    """A sampler that takes as many of each class."""
    assert findings_in(np.full(NUM_ROWS, SIZE // 2)) == []


def test_too_few_batches_show_nothing() -> None:
    """A state must last for `least_rows` rows."""
    assert findings_in(np.array([SIZE, 0] * 9)) == []
