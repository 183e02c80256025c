"""Clipping before `step` is found by the norms that it leaves, and no norm that is steady by itself is taken for it."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Group
from ava_pipeline.signs.registry import listed_findings
from ava_pipeline.signs.thresholds import Thresholds
from tests.signs.rows import EVERY, GROUPS, Columns, clip, columns, evidence, found_in, healthy_in

SIGN = "clipped-before-step"
NORMS = ("overall", "trunk", "top", "first", "second")
ALONE = {"overall": GROUPS["overall"]}


def found(given: Columns, groups: Mapping[str, Group] = GROUPS) -> list[Finding]:
    """The findings of the sign; without groups but `overall`, the other columns are left out."""
    kept = {name: given[name] for name in given if name in groups or name not in NORMS}
    findings = listed_findings(evidence(kept, groups), Thresholds())
    return [finding for finding in findings if finding.id == SIGN]


def rows_at_bound(num: int, *, every: int = 3, num_rows: int = 200) -> Columns:
    """Rows of which the first, the fourth and so on reach a bound of 0.5, `num` of them; all others are far below."""
    given = columns(num_rows)
    is_high = np.isin(np.arange(num_rows), np.arange(num) * every)
    for name in NORMS:
        given[name] = np.where(is_high, given[name] * 10.0, given[name] * 0.1)
    clip(given, 0.5)
    return given


def test_a_run_that_is_clipped_in_every_row_is_named() -> None:
    """With the bound, every batch, and where to call `step` instead; its norms are not called steady."""
    (finding,) = found_in(lambda given: clip(given, 0.2))
    assert (finding.id, finding.severity, finding.column) == (SIGN, "warning", "overall")
    assert (finding.batch_idx, finding.batch_idx_end) == (EVERY, 200 * EVERY)
    assert finding.value == pytest.approx(0.2, rel=1e-5)
    assert finding.message == (
        "gradients were clipped before step(): overall is never above 0.2 over 200 collected steps and often equal to "
        "it, so the norms before clipping are not known."
    )
    assert "after backward() and before clipping" in finding.advice
    assert "on_pre_optimizer_step" in finding.advice
    assert "norms-steady" not in healthy_in(lambda given: clip(given, 0.2))


@pytest.mark.parametrize(("num", "is_found"), [(20, True), (19, False)])
def test_twenty_rows_at_the_bound_are_the_least(num: int, *, is_found: bool) -> None:
    """However many rows lie below it, and also if there are no others."""
    assert bool(found(rows_at_bound(num))) is is_found
    given = columns(num)
    clip(given, 0.2)
    assert bool(found(given)) is is_found


def test_the_finding_begins_with_the_first_row_at_the_bound() -> None:
    """Rows that warm up below it are not part of it; it is over once 64 rows stay below."""
    given = columns(400)
    for name in NORMS:
        given[name] *= np.concatenate((np.linspace(0.01, 0.2, 100), np.full(150, 10.0), np.full(150, 0.01)))
    clip(given, 0.5)
    (finding,) = found(given)
    assert (finding.batch_idx, finding.batch_idx_end) == (101 * EVERY, (250 + 64) * EVERY)


@pytest.mark.parametrize("bounds", [(0.2, 0.3), (0.3, 0.2), (0.3, 0.2, 0.1, 0.05)])
def test_a_bound_that_changes_is_found(bounds: tuple[float, ...]) -> None:
    """A run resumed with another max_norm, or one that a schedule lowers every hundred rows."""
    given = columns(100 * len(bounds))
    clip(given, np.repeat(bounds, 100))
    (finding,) = found(given)
    assert finding.value == pytest.approx(max(bounds), rel=1e-5)
    assert (finding.batch_idx, finding.batch_idx_end) == (EVERY, 100 * len(bounds) * EVERY)


def test_a_run_that_was_repaired_is_warned_of_up_to_there() -> None:
    """Clipped before `step` in its first 200 rows, and after it in the rest; as far as higher rows leave no doubt."""
    given, first = columns(400), columns(400)
    clip(first, 0.2)
    for name in NORMS:
        given[name][:200] = first[name][:200]
    (finding,) = found(given)
    assert finding.batch_idx == EVERY
    assert 130 * EVERY < finding.batch_idx_end <= 200 * EVERY


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_enough_that_the_bound_is_reached_now_and_then(share: float, seed: int) -> None:
    """In one row of twenty, or in nearly all."""
    given = steady(600, seed=seed)
    assert found(given) == []
    clip(given, float(np.quantile(given["overall"], 1 - share)))
    assert found(given)


def steady(num_rows: int, *, spread: float = 0.2, seed: int = 0) -> Columns:
    """Rows whose norms vary by a share of themselves, about the same level throughout."""
    rng = np.random.default_rng(seed)
    given = columns(num_rows)
    trunk, first, second, stem = (
        level * np.exp(spread * rng.standard_normal(num_rows)) for level in (0.3, 0.2, 0.2, 0.5)
    )
    top = np.hypot(first, second)
    overall = np.sqrt(trunk**2 + top**2 + stem**2)
    return given | {"overall": overall, "trunk": trunk, "top": top, "first": first, "second": second}


@pytest.mark.parametrize("spread", [5e-4, 5e-3, 0.02, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_norms_that_vary_little_are_not_clipped(spread: float, seed: int) -> None:
    """The less the norms vary, the less their groups do."""
    assert found(steady(2000, spread=spread, seed=seed)) == []


@pytest.mark.parametrize("spread", [5e-3, 0.02, 0.2, 1.0])
def test_norms_that_vary_little_are_found_once_they_are_clipped(spread: float) -> None:
    """Large batches have steady groups too."""
    given = steady(200, spread=spread)
    clip(given, 0.1)
    assert found(given)


def smooth(num_rows: int, period: float, seed: int) -> Columns:
    """Norms without noise, as in training on the whole data set at each step."""
    rng = np.random.default_rng(seed)
    row = np.arange(num_rows)

    def wave() -> NDArray[np.float64]:
        waves = [
            rng.normal() * np.sin(row / period * rng.uniform(0.3, 3.0) + rng.uniform(0.0, 6.0)) / 2 for _ in range(3)
        ]
        curve: NDArray[np.float64] = rng.uniform(0.1, 1.0) * np.exp(np.sum(waves, axis=0))
        return curve

    trunk, first, second = wave(), wave(), wave()
    top = np.hypot(first, second)
    given = columns(num_rows) | {"trunk": trunk, "top": top, "first": first, "second": second}
    given["overall"] = np.hypot(trunk, top)
    given["loss"] = 1.0 + wave()
    return given


@pytest.mark.parametrize("period", [30.0, 100.0, 300.0, 1000.0, 3000.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_smooth_curve_is_not_clipped_at_its_top(period: float, seed: int) -> None:
    """A whole hill may stay within 1e-4, and its parts move little as well."""
    assert found(smooth(3000, period, seed)) == []
    assert found(smooth(3000, period, seed), ALONE) == []


@pytest.mark.parametrize("period", [30.0, 100.0, 1000.0])
def test_tops_of_the_same_height_are_too_seldom_for_a_bound(period: float) -> None:
    """Two groups that wax and wane slowly, one against the other, reach the same norm again and again."""
    given = columns(5000)
    row = np.arange(5000) / period
    given["trunk"], given["top"] = np.cos(row) ** 2 + 0.1, np.sin(row) ** 2 + 0.1
    given["first"], given["second"] = given["top"], np.zeros(5000)
    given["overall"] = np.hypot(given["trunk"], given["top"])
    assert found(given) == []


@pytest.mark.parametrize("period", [30.0, 100.0, 300.0, 1000.0])
def test_training_on_a_single_batch_is_found_once_it_is_clipped(period: float) -> None:
    """Its groups move slowly, and the norm not at all."""
    given = smooth(3000, period, seed=0)
    clip(given, 0.01)
    assert found(given)


def constant(given: Columns) -> None:
    """Gradients that are the same in every row, as those of a loss that is linear in the weights."""
    for name in NORMS:
        given[name] = np.full(len(given[name]), given[name][0])


def nearly_constant(given: Columns) -> None:
    """The same, in another order of summation in every row."""
    constant(given)
    rng = np.random.default_rng(0)
    for name in NORMS:
        given[name] *= 1.0 + 1e-7 * rng.standard_normal(len(given[name]))


def two_tasks(given: Columns) -> None:
    """Two heads that are trained in turn, and whose norms are the same to a hundredth."""
    num_rows = len(given["overall"])
    level = 0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(num_rows))
    is_first = np.arange(num_rows) % 2 == 0
    given["trunk"] = np.full(num_rows, 1e-3)
    given["first"], given["second"] = np.where(is_first, level, 1e-3), np.where(is_first, 1e-3, level)
    given["top"] = np.hypot(given["first"], given["second"])
    given["overall"] = np.hypot(given["trunk"], given["top"])


def near_a_bound(given: Columns) -> None:
    """Norms of which most are a few hundredths below the highest, as those of a loss with bounded gradients."""
    rng = np.random.default_rng(0)
    overall = 1.0 - 0.1 * rng.exponential(size=len(given["overall"]))
    for name in ("trunk", "top", "first", "second"):
        given[name] *= overall / given["overall"]
    given["overall"] = overall


def same_batches(given: Columns) -> None:
    """Ten batches in the same order over and over, while the weights hardly change."""
    for name in (*NORMS, "loss"):
        given[name] = np.tile(given[name][:10], len(given[name]) // 10) * np.linspace(1.0, 1.0 - 1e-6, len(given[name]))


def no_gradients(given: Columns) -> None:
    """Every norm is null."""
    for name in NORMS:
        given[name] = [None] * len(given[name])


def all_zero(given: Columns) -> None:
    """Every gradient is 0."""
    for name in NORMS:
        given[name] = np.zeros(len(given[name]))


def vanishing(given: Columns) -> None:
    """Gradients next to nothing, which vary."""
    for name in NORMS:
        given[name] = given[name] * 1e-9


def overflowing(given: Columns) -> None:
    """No norm is finite."""
    for name in NORMS:
        given[name] = np.full(len(given[name]), np.inf)


def exploding(given: Columns) -> None:
    """Norms that grow and stay at another level."""
    for name in NORMS:
        given[name][100:] *= 50.0


STEADY_BY_ITSELF = [
    constant,
    nearly_constant,
    two_tasks,
    near_a_bound,
    same_batches,
    no_gradients,
    all_zero,
    vanishing,
    overflowing,
    exploding,
]


@pytest.mark.parametrize("change", STEADY_BY_ITSELF, ids=lambda change: change.__name__)
def test_a_norm_that_is_steady_by_itself_is_not_clipped(change: Callable[[Columns], None]) -> None:
    """Its groups are steady too, or it is not as steady as clipping makes it."""
    given = columns(400)
    change(given)
    assert found(given) == []


@pytest.mark.parametrize("level", [0.3, 3.0, 30.0, 300.0, 3e4])
def test_a_constant_group_is_not_taken_for_a_bound(level: float) -> None:
    """A penalty whose gradient does not change, beside others: the norm varies as much as their shares do."""
    given = steady(1000)
    overall = np.sqrt(level**2 + given["trunk"] ** 2 + given["top"] ** 2)
    given["overall"] = overall.astype(np.float32).astype(np.float64)
    assert found(given) == []


@pytest.mark.parametrize("level", [1.0, 10.0, 30.0])
def test_groups_with_a_small_share_show_it(level: float) -> None:
    """Parameters in no group but `overall` have nearly all of the norm, as those of a backbone's first stages."""
    rng = np.random.default_rng(0)
    given = steady(200)
    given["overall"] = np.hypot(level * np.exp(0.2 * rng.standard_normal(200)), given["overall"])
    assert found(given) == []
    clip(given, 0.3)
    assert found(given)


def test_steps_that_overflow_do_not_hide_the_bound() -> None:
    """A GradScaler skips a step now and then, whose norm is inf."""
    given = columns(200)
    given["loss_scale"] = [1024.0] * 200
    clip(given, 0.2)
    for name in NORMS:
        given[name][50::50] = np.inf
    (finding,) = found(given)
    assert (finding.batch_idx, finding.batch_idx_end) == (EVERY, 200 * EVERY)


@pytest.mark.parametrize("deviation", [0.0, 4e-3])
def test_bfloat16_gradients_are_clipped_less_exactly(deviation: float) -> None:
    """The total and the factor are rounded to 0.4 % each; norms that vary so little by themselves are not found."""
    given, rng = steady(200), np.random.default_rng(0)
    clip(given, 0.2)
    rounding = 1.0 + rng.uniform(-deviation, deviation, 200) + rng.uniform(-deviation, deviation, 200)
    for name in NORMS:
        given[name] *= rounding
    assert found(given)
    assert found(steady(200, spread=deviation)) == []


class TestWithoutGroups:
    """A model whose parts are not known has no shares to compare."""

    def test_losses_that_vary_show_it(self) -> None:
        """While the norm does not."""
        given = columns(20)
        clip(given, 0.2)
        assert found(given, ALONE)
        assert found({name: column[:19] for name, column in given.items()}, ALONE) == []

    def test_a_loss_that_is_nan_now_and_then_shows_it_too(self) -> None:
        """It is left out; a loss that was never measured counts as none."""
        given = columns(100)
        clip(given, 0.2)
        given["loss"][::7] = np.nan
        assert found(given, ALONE)
        assert found(given | {"loss": [None] * 100}, ALONE) == []

    def test_losses_that_do_not_vary_show_nothing(self) -> None:
        """Then neither batches nor weights change, which keeps the norm constant as well."""
        given = columns(400)
        clip(given, 0.2)
        given["loss"] = np.full(400, 0.1)
        assert found(given, ALONE) == []

    @pytest.mark.parametrize("change", [constant, *STEADY_BY_ITSELF[2:]], ids=lambda change: change.__name__)
    def test_a_norm_that_is_steady_by_itself(self, change: Callable[[Columns], None]) -> None:
        """Also beside a loss that varies: L1 losses have constant gradients."""
        given = columns(400)
        change(given)
        assert found(given, ALONE) == []

    @pytest.mark.parametrize(("num", "is_found"), [(200, True), (199, False)])
    def test_without_losses_it_must_last_ten_times_as_long(self, num: int, *, is_found: bool) -> None:
        """Only the last digits of the norm tell that the gradients varied."""
        given = columns(num)
        del given["loss"]
        clip(given, 0.2)
        assert bool(found(given, ALONE)) is is_found
        constant(given)
        assert found(given, ALONE) == []
