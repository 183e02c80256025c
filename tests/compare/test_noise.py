"""Which curves differ beyond noise, and from which row on."""

from collections.abc import Callable

import numpy as np
import pytest

from ava_pipeline.compare.noise import FACTOR, WINDOW, first_departure
from ava_pipeline.contract.arrays import Floats

NUM_ROWS = 1000
_SHAPES: dict[str, Callable[[np.random.Generator], Floats]] = {
    "normal": lambda rng: rng.normal(size=NUM_ROWS),
    "heavy tails": lambda rng: rng.standard_cauchy(size=NUM_ROWS),
    "skewed": lambda rng: rng.lognormal(size=NUM_ROWS),
    "bounded": lambda rng: rng.uniform(size=NUM_ROWS),
}
TREND = 3 * np.exp(-np.arange(NUM_ROWS) / 100)


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("trend", [np.zeros(NUM_ROWS), TREND], ids=["level", "falling"])
def test_curves_that_scatter_around_the_same_level_do_not_differ(shape: str, trend: Floats) -> None:
    """Of two seeds, whatever the distribution, also while both fall."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert first_departure(trend + _SHAPES[shape](rng), trend + _SHAPES[shape](rng)) is None


@pytest.mark.parametrize("row", [0, 1, 29, 500, 4095, 4100, 4970])
def test_a_level_that_changes_is_found_at_its_row(row: int) -> None:
    """Curves that were equal up to there; also across the blocks in which long curves are read."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=5000)
    b = a + np.where(np.arange(5000) >= row, 10.0, 0.0)
    found = first_departure(a, b)
    assert found is not None
    assert found.position == row
    assert found.level_b - found.level_a == pytest.approx(10, abs=1)
    assert 0.3 < found.scatter < 2  # of 30 rows
    assert found.is_at_end


@pytest.mark.parametrize("distance", [4.0, 20.0])
def test_other_batches_at_another_level_are_found_near_their_row(distance: float) -> None:
    """Within one window of rows that are not equal before either."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, NUM_ROWS))
    b[600:] += distance
    found = first_departure(a, b)
    assert found is not None
    assert abs(found.position - 600) <= WINDOW
    assert abs(found.level_b - found.level_a) > FACTOR * found.scatter


def test_curves_that_meet_again_are_not_apart_at_the_end() -> None:
    """A difference that ends is still reported where it began."""
    a = np.random.default_rng(3).normal(size=NUM_ROWS)
    b = a.copy()
    b[300:500] += 50
    found = first_departure(a, b)
    assert found is not None
    assert (found.position, found.is_at_end) == (300, False)


def test_single_spikes_are_noise() -> None:
    """A third of the rows may be wrong."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, NUM_ROWS))
    b[::3] *= 1e6
    assert first_departure(a, b) is None


def test_rounding_is_noise_and_its_growth_is_not() -> None:
    """Smooth curves of one seed on other hardware: apart by a few units of the last place, then by 1 %."""
    a = np.linspace(10, 11, NUM_ROWS)
    assert first_departure(a, a * (1 + 3e-6)) is None
    growing = first_departure(a, a * (1 + 1e-8 * 1.02 ** np.arange(NUM_ROWS)))
    assert growing is not None
    assert 1e-8 * 1.02**growing.position > 1e-5
    assert 1e-8 * 1.02 ** (growing.position - WINDOW) < 2e-5


def test_constants_differ_if_they_differ() -> None:
    """Without any scatter."""
    found = first_departure(np.full(WINDOW, 1.0), np.full(WINDOW, 0.5))
    assert found is not None
    assert (found.position, found.level_a, found.level_b, found.scatter) == (0, 1.0, 0.5, 0.0)
    assert first_departure(np.zeros(WINDOW), np.zeros(WINDOW)) is None


@pytest.mark.parametrize("num_rows", [0, 1, WINDOW - 1])
def test_too_few_rows_are_not_told_apart(num_rows: int) -> None:
    """Not even if they are far apart."""
    assert first_departure(np.zeros(num_rows), np.full(num_rows, 1e9)) is None
