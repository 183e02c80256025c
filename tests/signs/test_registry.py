"""Each sign is found in rows that show it, and not in a near miss."""

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
    """Multiplies columns over a range of rows; its repr is the id of the test."""

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
def test_a_sign_is_found_in_rows_that_show_it(sign: str, change: Change) -> None:
    """Healthy rows become such rows by one change."""
    assert sign in signs_in(change)


@pytest.mark.parametrize(("sign", "change"), named(MISSED))
def test_a_near_miss_is_not_taken_for_a_sign(sign: str, change: Change) -> None:
    """A shorter, smaller or opposite change does not show the sign."""
    assert sign not in signs_in(change)


@pytest.mark.parametrize("seed", range(20))
def test_healthy_rows_show_nothing(seed: int) -> None:
    """Norms that vary by a fifth from row to row and fall are healthy."""
    assert listed_findings(evidence(columns(seed=seed)), Thresholds()) == []


def test_a_finding_names_column_batches_epoch_and_value() -> None:
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
    """Null in every row: a warning if its parameters require gradients, information if they do not."""

    def change(given: Columns) -> None:
        given["trunk"] = [None] * len(given["trunk"])

    (finding,) = found_in(change)
    assert (finding.sign, finding.severity, finding.value) == ("backbone-not-learning", "warning", None)
    frozen = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"trainable": False})}
    (finding,) = found_in(change, groups=frozen)
    assert (finding.sign, finding.severity, finding.column) == ("frozen", "info", "trunk")


def test_a_backbone_that_is_thawed_is_not_at_fault() -> None:
    """Gradual unfreezing: null at first, then trained, which is information."""

    def change(given: Columns) -> None:
        given["trunk"] = [None] * 100 + list(given["trunk"][100:])

    frozen = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"trainable": False})}
    (found,) = found_in(change, groups=frozen)
    assert (found.sign, found.severity, found.batch_idx_end) == ("frozen", "info", 1000)
    assert "it is trained from batch 1010 on" in found.message


def test_a_backbone_that_is_thawed_and_then_dead_is_found_from_there_on() -> None:
    """A group that is trained later is judged later."""

    def change(given: Columns) -> None:
        given["trunk"] = [None] * 50 + list(given["trunk"][50:100]) + [1e-12] * 100
        given["first"] = [None] * 50 + list(given["first"][50:100]) + [0.0] * 100

    frozen = GROUPS | {name: GROUPS[name].model_copy(update={"trainable": False}) for name in ("trunk", "first")}
    found = {(finding.sign, finding.batch_idx, finding.batch_idx_end) for finding in found_in(change, groups=frozen)}
    assert found == {("frozen", 10, 500), ("backbone-not-learning", 1010, 2000), ("dead-layer", 1010, 2000)}


def test_the_rate_of_a_frozen_group_is_not_judged() -> None:
    """Neither at 0 nor as high as the head's; the rate of a group that is thawed later is judged."""
    frozen = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"trainable": False})}

    def change(given: Columns, rate: float) -> None:
        given["trunk"] = [None] * 200
        given["lr_group_0"] = np.full(200, rate)

    limits = Thresholds(head_rate_above=True)
    for rate in (0.0, 1.0):
        assert {finding.sign for finding in found_in(lambda given: change(given, rate), limits, frozen)} == {"frozen"}  # noqa: B023  # called at once
    assert "learning-rate-zero" in {finding.sign for finding in found_in(scale("lr_group_0", by=0.0), groups=frozen)}


def test_rows_without_any_gradient_are_found_unless_everything_is_frozen() -> None:
    """Otherwise the run would pass as one without faults."""

    def change(given: Columns) -> None:
        given.update({name: [None] * 200 for name in NORMS})

    assert {finding.sign for finding in found_in(change)} == {"not-measured"}
    frozen = {name: group.model_copy(update={"trainable": False}) for name, group in GROUPS.items()}
    assert {finding.sign for finding in found_in(change, groups=frozen)} == {"frozen"}


def test_norms_that_are_large_from_the_first_row_on_do_not_explode() -> None:
    """Such as those of a summed loss; above the bound, only growth counts."""

    def large(given: Columns, growth: float) -> None:
        for name in NORMS:
            given[name] *= 1e5
            given[name][150:] *= growth

    assert "exploding" not in {finding.sign for finding in found_in(lambda given: large(given, 1.0))}
    assert "exploding" in {finding.sign for finding in found_in(lambda given: large(given, 40.0))}


def test_norms_that_stay_high_are_not_a_spike() -> None:
    """A step from one level to another is more than a single batch; ten rows may be the effect of one batch."""
    assert "spike" not in signs_in(scale(*NORMS, by=12.0, first=100))
    assert "spike" in signs_in(scale(*NORMS, by=12.0, first=100, last=110))


def test_a_dead_layer_names_its_share() -> None:
    """The median over its rows; None if it had no gradients at all."""

    def fade(given: Columns) -> None:
        given["first"] = given["top"] * 1e-5

    (finding,) = found_in(fade)
    assert finding.sign == "dead-layer"
    assert finding.value == pytest.approx(1e-5)
    assert finding.message == "first is dead: its norm is 1e-05 of top's over 200 collected steps."
    (finding,) = found_in(lambda given: given.update(first=[None] * 200))
    assert (finding.sign, finding.value) == ("dead-layer", None)
    assert "it had no gradients over" in finding.message


def test_a_head_dominates_if_all_other_norms_are_next_to_nothing() -> None:
    """The backbone's last stage still has a share that is not negligible."""

    def change(given: Columns, ratio: float) -> None:
        given["trunk"] = given["top"] / (2 * ratio)
        given["overall"] = np.hypot(given["top"], given["top"] / ratio)

    assert {finding.sign for finding in found_in(lambda given: change(given, 100.0))} == {"head-dominating"}
    assert found_in(lambda given: change(given, 10.0)) == []


def test_a_steady_rise_is_not_confused_with_noise_or_with_a_small_rise() -> None:
    """Thirtyfold evenly is a sign; twofold is not, nor thirtyfold noise without a trend."""
    assert "rising" in signs_in(lambda given: ramp(given, 30.0))
    assert "rising" not in signs_in(lambda given: ramp(given, 2.0))

    def shuffle(given: Columns) -> None:
        ramp(given, 30.0)
        given["overall"] = np.random.default_rng(0).permutation(given["overall"])

    assert "rising" not in signs_in(shuffle)


def test_a_loss_that_rises_steadily_is_found() -> None:
    """From 0.1 to 0.2; falling is what a loss should do."""
    assert signs_in(lambda given: given.update(loss=np.linspace(0.1, 0.2, 200))) == {"loss-rising"}
    assert signs_in(lambda given: given.update(loss=np.linspace(0.2, 0.1, 200))) == set()


def test_a_loss_may_be_negative_without_a_floor() -> None:
    """The log-likelihood of a density may have any value."""
    change = scale("loss", by=-1.0)
    assert signs_in(change, Thresholds(loss_floor=None)).isdisjoint({"loss-negative"})


def test_the_order_of_rates_is_checked_only_if_it_is_configured() -> None:
    """Otherwise equal rates are fine."""
    change = scale("lr_group_1", by=0.1)
    assert signs_in(change) == set()
    assert signs_in(change, Thresholds(head_rate_above=True)) == {"learning-rate-order"}
    assert signs_in(unchanged, Thresholds(head_rate_above=True)) == set()


def test_a_warm_restart_is_not_a_jump() -> None:
    """It returns to an earlier rate."""

    def restart(given: Columns) -> None:
        given["lr_group_0"] = 1e-4 * np.tile(np.geomspace(1.0, 1e-3, 50), 4)

    assert signs_in(restart) == set()


def test_a_group_in_no_optimizer_is_found() -> None:
    """It has gradients, but no learning rate."""
    forgotten = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"learning_rates": ()})}
    assert {finding.sign for finding in found_in(unchanged, groups=forgotten)} == {"not-optimized"}


def test_single_overflows_under_a_grad_scaler_are_information() -> None:
    """It skips such steps on purpose; many of them, or a scale below 1, are warned of."""

    def overflow(given: Columns, num: int) -> None:
        given["loss_scale"] = [1024.0] * len(given["overall"])
        for name in NORMS:
            given[name][10 : 10 + 10 * num : 10] = np.inf

    assert {finding.severity for finding in found_in(lambda given: overflow(given, 3))} == {"info"}
    assert "non-finite" in signs_in(lambda given: overflow(given, 15))
    assert "loss-scale-collapse" in signs_in(lambda given: given.update(loss_scale=np.full(200, 0.5)))


def test_a_scale_that_starts_too_high_is_information() -> None:
    """Halved at each step until it fits: no warning and no explosion, whether the search has ended or not."""

    def search(given: Columns, num: int) -> None:
        given["loss_scale"] = [2.0 ** max(20 - row, 20 - num) for row in range(200)]
        for name in NORMS:
            given[name][:num] = np.inf

    for num in (1, 3, 12):
        assert {(finding.sign, finding.severity) for finding in found_in(lambda given: search(given, num))} == {  # noqa: B023  # called at once
            ("non-finite", "info")
        }
        begun = columns(num)
        begun["loss_scale"] = [2.0 ** (20 - row) for row in range(num)]
        for name in NORMS:
            begun[name][:] = np.inf
        assert {finding.severity for finding in listed_findings(evidence(begun), Thresholds())} == {"info"}


@pytest.mark.parametrize("scales", [np.full(200, 1024.0), 1024.0 * 0.5 ** np.maximum(np.arange(200) - 149.0, 0.0)])
def test_values_that_a_lower_scale_does_not_repair_are_an_error(scales: "np.typing.NDArray[np.float64]") -> None:
    """Under a scale that stays where it is, and under one that falls below 1."""

    def last(given: Columns) -> None:
        given["loss_scale"] = scales
        for name in NORMS:
            given[name][150:] = np.nan

    assert ("non-finite", "error") in {(finding.sign, finding.severity) for finding in found_in(last)}


def test_a_loss_that_is_not_finite_is_not_caused_by_the_scale() -> None:
    """The scale multiplies it only afterwards."""

    def change(given: Columns) -> None:
        given["loss_scale"] = [1024.0] * 100 + [512.0] * 100
        for name in (*NORMS, "loss"):
            given[name][99] = np.nan

    found = {(finding.column, finding.severity) for finding in found_in(change)}
    assert found == {("overall", "info"), ("loss", "warning")}


def test_a_range_that_is_not_finite_counts_only_such_rows() -> None:
    """A finite row between two others belongs to the range, but is not counted."""

    def change(given: Columns) -> None:
        given["overall"][[100, 102]] = np.nan

    (finding,) = found_in(change)
    assert (finding.batch_idx, finding.batch_idx_end) == (1010, 1030)
    assert finding.message == "overall: not finite in 2 collected steps."


def test_values_that_are_not_finite_up_to_the_last_row_are_an_error() -> None:
    """The training no longer learns."""
    (finding,) = found_in(scale(*NORMS, by=np.nan, first=150))
    assert (finding.sign, finding.severity) == ("non-finite", "error")
    assert (finding.batch_idx, finding.batch_idx_end) == (151 * EVERY, 200 * EVERY)


def test_null_is_not_taken_for_nan() -> None:
    """A group that was not measured is not reported as not finite."""

    def change(given: Columns) -> None:
        given["second"] = [None, *given["second"][1:]]

    assert found_in(change) == []


def test_signs_depend_on_roles_and_not_on_names() -> None:
    """A group named like a backbone whose role is another is left alone."""
    others = {name: Group(role="other", parameters=group.parameters) for name, group in GROUPS.items()}
    assert found_in(scale("trunk", by=1e-6), groups=others | {"overall": GROUPS["overall"]}) == []


def test_findings_that_are_alike_are_listed_up_to_a_limit() -> None:
    """Of thirty spikes twenty are listed, and the last one says how many are not."""

    def change(given: Columns) -> None:
        given["overall"][80:200:4] *= 1000.0

    spikes = [finding for finding in found_in(change) if finding.sign == "spike" and finding.column == "overall"]
    assert len(spikes) == MAX_LISTED
    assert spikes[-1].message.endswith("10 more findings like this one are not listed.")


@pytest.mark.parametrize("num_rows", [0, 1, 2, 15, 40])
def test_few_rows_raise_no_error(num_rows: int) -> None:
    """Signs can be checked from the first row on, and before it."""
    assert listed_findings(evidence(columns(num_rows)), Thresholds()) == []


def test_every_sign_that_is_warned_of_has_the_name_of_an_event() -> None:
    """So that it can be written while training."""
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
