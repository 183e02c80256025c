"""Each rule fires on rows that show its sign, and not on its near miss."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from ava_pipeline.contract.events import EventName
from ava_pipeline.contract.manifest import Group
from ava_pipeline.signs import registry
from ava_pipeline.signs.registry import MAX_LISTED, listed_findings
from ava_pipeline.signs.thresholds import Thresholds
from tests.signs.rows import EVERY, GROUPS, Columns, columns, evidence, found_in, signs_in


def scale(*names: str, by: float, first: int = 0, last: int | None = None) -> "Change":
    """Multiply columns over some rows."""
    return Change(names, by, first, last)


class Change:
    """A change of columns that can be called with them, and is shown by pytest as what it does."""

    def __init__(self, names: tuple[str, ...], by: float, first: int, last: int | None) -> None:
        self._names, self._by, self._rows = names, by, slice(first, last)

    def __call__(self, given: Columns) -> None:
        """Change the columns in place."""
        for name in self._names:
            given[name][self._rows] *= self._by

    def __repr__(self) -> str:
        return f"{'+'.join(self._names)} times {self._by:g} in {self._rows.start}:{self._rows.stop}"


def ramp(given: Columns, factor: float) -> None:
    """Let the overall norm rise by a factor, evenly in its logarithm."""
    given["overall"] = 0.1 * np.logspace(0, np.log10(factor), len(given["overall"]))


def unchanged(given: Columns) -> None:
    """Leave healthy rows as they are."""


NORMS = ("overall", "trunk", "top", "first", "second")

SHOWN = [
    ("backbone-not-learning", scale("trunk", by=1e-5, first=100)),
    ("dead-layer", scale("first", by=0.0, first=100, last=140)),
    ("vanishing", scale(*NORMS, by=1e-8, first=100)),
    ("exploding", scale(*NORMS, by=1e4, first=150)),
    ("spike", scale(*NORMS, by=100.0, first=120, last=121)),
    ("spike", scale("loss", by=100.0, first=120, last=121)),
    ("non-finite", scale("overall", by=np.nan, first=120, last=121)),
    ("non-finite", scale("loss", by=np.inf, first=120, last=121)),
    ("learning-rate-zero", scale("lr_group_0", by=0.0, first=100)),
    ("learning-rate-jump", scale("lr_group_1", by=100.0, first=100)),
    ("clipping-often", scale("clip_rate", by=10.0, first=100)),
    ("loss-negative", scale("loss", by=-1.0, first=100)),
]
MISSED = [
    ("backbone-not-learning", scale("trunk", by=1e-5, first=100, last=110)),
    ("backbone-not-learning", scale("trunk", by=0.1)),
    ("dead-layer", scale("first", by=0.05)),
    ("dead-layer", scale("first", by=0.0, first=100, last=110)),
    ("vanishing", scale(*NORMS, by=1e-2, first=100)),
    ("exploding", scale(*NORMS, by=20.0, first=150)),
    ("spike", scale(*NORMS, by=3.0, first=120, last=121)),
    ("learning-rate-zero", scale("lr_group_0", by=0.0, first=0, last=5)),
    ("learning-rate-jump", scale("lr_group_1", by=0.1, first=100)),
    ("clipping-often", scale("clip_rate", by=5.0)),
    ("loss-negative", scale("loss", by=-1.0, first=100, last=105)),
]


def named(cases: "list[tuple[str, Change]]") -> list[object]:
    """Cases with a name that says what they change."""
    return [pytest.param(sign, change, id=f"{sign}: {change!r}") for sign, change in cases]


@pytest.mark.parametrize(("sign", "change"), named(SHOWN))
def test_a_sign_is_seen_where_rows_show_it(sign: str, change: Change) -> None:
    """And nothing is said of healthy rows."""
    assert sign in signs_in(change)


@pytest.mark.parametrize(("sign", "change"), named(MISSED))
def test_a_near_miss_is_not_taken_for_a_sign(sign: str, change: Change) -> None:
    """What is shorter, smaller or the other way round is not warned of by that rule."""
    assert sign not in signs_in(change)


@pytest.mark.parametrize("seed", range(20))
def test_healthy_rows_show_nothing(seed: int) -> None:
    """Norms that vary by a fifth from row to row and fall are as they should be."""
    assert listed_findings(evidence(columns(seed=seed)), Thresholds()) == []


def test_a_finding_names_column_batches_epoch_and_figure() -> None:
    """A golden case: 40 rows of a backbone at a hundred-thousandth, in batches 1010 to 1400."""

    def change(given: Columns) -> None:
        given["trunk"][100:140] = given["overall"][100:140] * 1e-5

    (finding,) = found_in(change)
    assert (finding.sign, finding.severity, finding.column) == ("backbone-not-learning", "warning", "trunk")
    assert (finding.batch_idx, finding.batch_idx_end, finding.epoch) == (1010, 1400, 2)
    assert finding.value == pytest.approx(1e-5)
    assert finding.message == "trunk is not learning: its norm is 1e-05 of the overall norm over 40 collected steps."
    assert "detach()" in finding.advice


def test_a_backbone_without_gradients_is_not_learning_unless_it_is_frozen() -> None:
    """Null in every row: a warning where its parameters require gradients, information where they do not."""

    def change(given: Columns) -> None:
        given["trunk"] = [None] * len(given["trunk"])

    (finding,) = found_in(change)
    assert (finding.sign, finding.severity, finding.value) == ("backbone-not-learning", "warning", None)
    frozen = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"trainable": False})}
    (finding,) = found_in(change, groups=frozen)
    assert (finding.sign, finding.severity, finding.column) == ("frozen", "info", "trunk")


def test_a_backbone_that_is_thawed_is_neither_frozen_nor_at_fault() -> None:
    """Gradual unfreezing: null at first, then trained."""

    def change(given: Columns) -> None:
        given["trunk"] = [None] * 100 + list(given["trunk"][100:])

    frozen = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"trainable": False})}
    assert found_in(change, groups=frozen) == []


def test_a_backbone_that_is_thawed_and_then_dead_is_told_from_there_on() -> None:
    """What is trained later is judged later."""

    def change(given: Columns) -> None:
        given["trunk"] = [None] * 50 + list(given["trunk"][50:100]) + [1e-12] * 100
        given["first"] = [None] * 50 + list(given["first"][50:100]) + [0.0] * 100

    frozen = GROUPS | {name: GROUPS[name].model_copy(update={"trainable": False}) for name in ("trunk", "first")}
    found = {(one.sign, one.batch_idx, one.batch_idx_end) for one in found_in(change, groups=frozen)}
    assert found == {("backbone-not-learning", 1010, 2000), ("dead-layer", 1010, 2000)}


def test_the_rate_of_a_frozen_group_is_nobodys_concern() -> None:
    """At 0, or as high as the head's; that of one thawed later is."""
    frozen = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"trainable": False})}

    def change(given: Columns, rate: float) -> None:
        given["trunk"] = [None] * 200
        given["lr_group_0"] = np.full(200, rate)

    limits = Thresholds(head_rate_above=True)
    for rate in (0.0, 1.0):
        assert {one.sign for one in found_in(lambda given: change(given, rate), limits, frozen)} == {"frozen"}  # noqa: B023  # called at once
    assert "learning-rate-zero" in {one.sign for one in found_in(scale("lr_group_0", by=0.0), groups=frozen)}


def test_rows_without_any_gradient_are_told_unless_everything_is_frozen() -> None:
    """They would else pass for a run without faults."""

    def change(given: Columns) -> None:
        given.update({name: [None] * 200 for name in NORMS})

    assert {one.sign for one in found_in(change)} == {"not-measured"}
    frozen = {name: group.model_copy(update={"trainable": False}) for name, group in GROUPS.items()}
    assert {one.sign for one in found_in(change, groups=frozen)} == {"frozen"}


def test_norms_that_are_large_from_the_first_row_on_do_not_explode() -> None:
    """As those of a summed loss; above the bound, it is growth that is told."""

    def large(given: Columns, growth: float) -> None:
        for name in NORMS:
            given[name] *= 1e5
            given[name][150:] *= growth

    assert "exploding" not in {one.sign for one in found_in(lambda given: large(given, 1.0))}
    assert "exploding" in {one.sign for one in found_in(lambda given: large(given, 40.0))}


def test_what_stays_high_is_no_spike() -> None:
    """A step from one level to another is of no single batch; ten rows may be one batch's echo."""
    assert "spike" not in signs_in(scale(*NORMS, by=12.0, first=100))
    assert "spike" in signs_in(scale(*NORMS, by=12.0, first=100, last=110))


def test_a_dead_layer_tells_its_share() -> None:
    """The median over its rows; none where it had no gradients at all."""

    def fade(given: Columns) -> None:
        given["first"] = given["top"] * 1e-5

    (finding,) = found_in(fade)
    assert finding.sign == "dead-layer"
    assert finding.value == pytest.approx(1e-5)
    assert finding.message == "first is dead: its norm is 1e-05 of top's over 200 collected steps."
    (finding,) = found_in(lambda given: given.update(first=[None] * 200))
    assert (finding.sign, finding.value) == ("dead-layer", None)
    assert "it had no gradients over" in finding.message


def test_a_head_dominates_where_all_the_rest_is_next_to_nothing() -> None:
    """The backbone's last stage still has its share, so that it is the head's size that is told."""

    def change(given: Columns, ratio: float) -> None:
        given["trunk"] = given["top"] / (2 * ratio)
        given["overall"] = np.hypot(given["top"], given["top"] / ratio)

    assert {one.sign for one in found_in(lambda given: change(given, 100.0))} == {"head-dominating"}
    assert found_in(lambda given: change(given, 10.0)) == []


def test_steady_rise_is_told_from_noise_and_from_a_small_one() -> None:
    """Thirtyfold evenly is a sign; twofold is not, nor thirtyfold noise without a trend."""
    assert "rising" in signs_in(lambda given: ramp(given, 30.0))
    assert "rising" not in signs_in(lambda given: ramp(given, 2.0))

    def shuffle(given: Columns) -> None:
        ramp(given, 30.0)
        given["overall"] = np.random.default_rng(0).permutation(given["overall"])

    assert "rising" not in signs_in(shuffle)


def test_a_loss_that_rises_steadily_is_told() -> None:
    """From 0.1 to 0.2; falling is what a loss should do."""
    assert signs_in(lambda given: given.update(loss=np.linspace(0.1, 0.2, 200))) == {"loss-rising"}
    assert signs_in(lambda given: given.update(loss=np.linspace(0.2, 0.1, 200))) == set()


def test_a_loss_may_be_negative_where_its_floor_is_taken_away() -> None:
    """A log-likelihood of a density may be anything."""
    change = scale("loss", by=-1.0)
    assert signs_in(change, Thresholds(loss_floor=None)).isdisjoint({"loss-negative"})


def test_the_head_is_held_above_the_backbone_only_where_it_is_meant_to_be() -> None:
    """Equal rates are fine by themselves."""
    change = scale("lr_group_1", by=0.1)
    assert signs_in(change) == set()
    assert signs_in(change, Thresholds(head_rate_above=True)) == {"learning-rate-order"}
    assert signs_in(unchanged, Thresholds(head_rate_above=True)) == set()


def test_a_warm_restart_is_no_jump() -> None:
    """It goes back to a rate that was there before."""

    def restart(given: Columns) -> None:
        given["lr_group_0"] = 1e-4 * np.tile(np.geomspace(1.0, 1e-3, 50), 4)

    assert signs_in(restart) == set()


def test_a_group_in_no_optimizer_is_told() -> None:
    """It has gradients, and no learning rate moves it."""
    forgotten = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"learning_rates": ()})}
    assert {one.sign for one in found_in(unchanged, groups=forgotten)} == {"not-optimized"}


def test_single_overflows_under_a_grad_scaler_are_information() -> None:
    """It skips such steps on purpose; many of them, or a scale below 1, are warned of."""

    def overflow(given: Columns, num: int) -> None:
        given["loss_scale"] = [1024.0] * len(given["overall"])
        for name in NORMS:
            given[name][10 : 10 + 10 * num : 10] = np.inf

    assert {one.severity for one in found_in(lambda given: overflow(given, 3))} == {"info"}
    assert "non-finite" in signs_in(lambda given: overflow(given, 15))
    assert "loss-scale-collapse" in signs_in(lambda given: given.update(loss_scale=np.full(200, 0.5)))


def test_a_scale_that_begins_too_high_is_information() -> None:
    """Halved at each step until it fits: no warning, nothing explodes, whether it is over yet or not."""

    def search(given: Columns, num: int) -> None:
        given["loss_scale"] = [2.0 ** max(20 - row, 20 - num) for row in range(200)]
        for name in NORMS:
            given[name][:num] = np.inf

    for num in (1, 3, 12):
        assert {(one.sign, one.severity) for one in found_in(lambda given: search(given, num))} == {  # noqa: B023  # called at once
            ("non-finite", "info")
        }
        begun = columns(num)
        begun["loss_scale"] = [2.0 ** (20 - row) for row in range(num)]
        for name in NORMS:
            begun[name][:] = np.inf
        assert {one.severity for one in listed_findings(evidence(begun), Thresholds())} == {"info"}


@pytest.mark.parametrize("scales", [np.full(200, 1024.0), 1024.0 * 0.5 ** np.maximum(np.arange(200) - 149.0, 0.0)])
def test_what_a_lower_scale_does_not_heal_is_an_error(scales: "np.typing.NDArray[np.float64]") -> None:
    """Under a scale that stays where it is, and under one that falls below 1."""

    def last(given: Columns) -> None:
        given["loss_scale"] = scales
        for name in NORMS:
            given[name][150:] = np.nan

    assert ("non-finite", "error") in {(one.sign, one.severity) for one in found_in(last)}


def test_a_loss_that_is_not_finite_is_no_fault_of_the_scale() -> None:
    """The scale multiplies it only afterwards."""

    def change(given: Columns) -> None:
        given["loss_scale"] = [1024.0] * 100 + [512.0] * 100
        for name in (*NORMS, "loss"):
            given[name][99] = np.nan

    found = {(one.column, one.severity) for one in found_in(change)}
    assert found == {("overall", "info"), ("loss", "warning")}


def test_a_stretch_that_is_not_finite_counts_only_such_rows() -> None:
    """A finite row between two that are not belongs to the stretch, and not to their number."""

    def change(given: Columns) -> None:
        given["overall"][[100, 102]] = np.nan

    (finding,) = found_in(change)
    assert (finding.batch_idx, finding.batch_idx_end) == (1010, 1030)
    assert finding.message == "overall: not finite in 2 collected steps."


def test_what_is_not_finite_up_to_the_last_row_is_an_error() -> None:
    """Nothing is learnt any more."""
    (finding,) = found_in(scale(*NORMS, by=np.nan, first=150))
    assert (finding.sign, finding.severity) == ("non-finite", "error")
    assert (finding.batch_idx, finding.batch_idx_end) == (151 * EVERY, 200 * EVERY)


def test_null_is_not_taken_for_nan() -> None:
    """A group that was not measured is not one that was not finite."""

    def change(given: Columns) -> None:
        given["second"] = [None, *given["second"][1:]]

    assert found_in(change) == []


def test_rules_go_by_role_and_not_by_name() -> None:
    """A group named like a backbone whose role is another is left alone."""
    others = {name: Group(role="other", parameters=group.parameters) for name, group in GROUPS.items()}
    assert found_in(scale("trunk", by=1e-6), groups=others | {"overall": GROUPS["overall"]}) == []


def test_signs_of_one_kind_are_listed_up_to_a_limit() -> None:
    """A spike every other row is told twenty times, and the last says how many more there were."""

    def change(given: Columns) -> None:
        given["overall"][80:200:4] *= 1000.0

    spikes = [one for one in found_in(change) if one.sign == "spike" and one.column == "overall"]
    assert len(spikes) == MAX_LISTED
    assert spikes[-1].message.endswith("10 more findings like this one are not listed.")


@pytest.mark.parametrize("num_rows", [0, 1, 2, 15, 40])
def test_few_rows_are_no_trouble(num_rows: int) -> None:
    """From the very first row on, rules can be asked."""
    assert listed_findings(evidence(columns(num_rows)), Thresholds()) == []


def test_every_sign_that_is_warned_of_has_the_name_of_an_event() -> None:
    """So that it can be told while training."""
    known = set(get_args(EventName))
    for _, change in SHOWN:
        assert {finding.event for finding in found_in(change) if finding.severity != "info"} <= known


def explained_by_backbone(given: Columns) -> None:
    """A backbone without gradients, so that the head has all of them."""
    given["trunk"] = given["top"] * 1e-6
    given["overall"] = given["top"] * 1.0


def explained_by_explosion(given: Columns) -> None:
    """Norms that are a thousand times larger for ten rows."""
    for name in NORMS:
        given[name][120:130] *= 1000.0


def explained_by_steady_explosion(given: Columns) -> None:
    """A norm that rises ten-thousandfold."""
    ramp(given, 1e4)


@pytest.mark.parametrize(
    ("sign", "reason", "change"),
    [
        ("head-dominating", "backbone-not-learning", explained_by_backbone),
        ("spike", "exploding", explained_by_explosion),
        ("rising", "exploding", explained_by_steady_explosion),
    ],
)
def test_a_finding_that_follows_from_another_is_left_out(
    sign: str, reason: str, change: Callable[[Columns], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry of the table is needed: without it, the same rows show the sign beside its reason."""
    found = {finding.id for finding in found_in(change)}
    assert (reason in found, sign in found) == (True, False)
    others = {key: reasons for key, reasons in registry._EXPLAINED_BY.items() if key != sign}
    monkeypatch.setattr(registry, "_EXPLAINED_BY", others)
    assert {reason, sign} <= {finding.id for finding in found_in(change)}


def test_a_finding_over_other_batches_is_not_left_out() -> None:
    """A spike long before the gradients explode is a finding of its own."""

    def change(given: Columns) -> None:
        for name in NORMS:
            given[name][60] *= 100.0
            given[name][150:] *= 1e4

    assert {"spike", "exploding"} <= {finding.id for finding in found_in(change)}
