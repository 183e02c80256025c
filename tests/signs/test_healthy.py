"""A healthy sign is reported if it is true, and never beside a finding that contradicts it."""

from collections.abc import Callable

import numpy as np
import pytest

from ava_pipeline.signs.healthy import healthy_signs, is_enough
from ava_pipeline.signs.thresholds import Thresholds
from tests.signs.rows import GROUPS, Columns, columns, evidence, healthy_in

NORMS = ("overall", "trunk", "top", "first", "second")
Change = Callable[[Columns], None]
EVERY_SIGN = {
    "all-finite",
    "backbone-learning",
    "clipping-seldom",
    "head-learning",
    "loss-falling",
    "norms-steady",
    "rates-in-order",
    "rows-complete",
}
LEARNING = {"backbone-learning", "head-learning"}


def changed(*names: str, to: float, first: int = 0) -> Change:
    """Set columns to a value from a row on."""

    def change(given: Columns) -> None:
        for name in names:
            given[name][first:] = to

    return change


def times(*names: str, by: float, first: int) -> Change:
    """Multiply columns from a row on."""

    def change(given: Columns) -> None:
        for name in names:
            given[name][first:] *= by

    return change


def null(*names: str) -> Change:
    """Leave columns unmeasured."""
    return lambda given: given.update({name: [None] * len(given[name]) for name in names})


def test_a_good_run_shows_all_of_them() -> None:
    """Each by its id."""
    assert healthy_in(unchanged) == EVERY_SIGN


def unchanged(given: Columns) -> None:
    """Leave healthy rows as they are."""


FAULTY = [
    ("backbone at rate 0", changed("lr_group_0", to=0.0), {"backbone-learning", "rates-in-order"}),
    ("head at rate 0", changed("lr_group_1", to=0.0), {"head-learning", "rates-in-order"}),
    (
        "nan to the end",
        changed(*NORMS, to=np.nan, first=100),
        {*LEARNING, "all-finite", "norms-steady", "loss-falling"},
    ),
    (
        "nan in the loss",
        changed("loss", to=np.nan, first=195),
        {*LEARNING, "all-finite", "norms-steady", "loss-falling"},
    ),
    ("everything vanishes", times(*NORMS, by=1e-9, first=40), {*LEARNING, "norms-steady"}),
    ("everything explodes", times(*NORMS, by=1e5, first=150), {*LEARNING, "norms-steady"}),
    ("dead layer", changed("first", to=0.0, first=100), {"head-learning"}),
    ("backbone without gradients", null("trunk"), {"backbone-learning"}),
    ("a layer without gradients", null("first"), {"head-learning"}),
    ("the wrong way round", times("loss", by=-1.0, first=0), {"loss-falling"}),
]


@pytest.mark.parametrize(("change", "missing"), [pytest.param(*rest, id=name) for name, *rest in FAULTY])
def test_a_faulty_run_shows_the_other_healthy_signs(change: Change, missing: set[str]) -> None:
    """The signs that the fault contradicts are left out, and no others."""
    assert healthy_in(change) == EVERY_SIGN - missing


@pytest.mark.parametrize(
    ("names", "facts", "missing"),
    [
        (("top", "first", "second"), {"trainable": False}, {"head-learning"}),
        (("trunk",), {"trainable": False}, {"backbone-learning"}),
    ],
)
def test_a_frozen_group_does_not_learn(names: tuple[str, ...], facts: dict[str, bool], missing: set[str]) -> None:
    """Though its rate is above 0 and nothing is warned of."""
    frozen = GROUPS | {name: GROUPS[name].model_copy(update=facts) for name in names}
    assert healthy_in(null(*names), frozen) == EVERY_SIGN - missing


def test_a_group_in_no_optimizer_does_not_learn() -> None:
    """Though it has gradients."""
    forgotten = GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"learning_rates": ()})}
    assert healthy_in(unchanged, forgotten) == EVERY_SIGN - {"backbone-learning", "rates-in-order"}


def test_overflows_that_a_grad_scaler_skips_leave_the_rest_well() -> None:
    """Only `all-finite` is left out."""

    def search(given: Columns) -> None:
        given["loss_scale"] = [2.0 ** max(20 - row, 15) for row in range(200)]
        for name in NORMS:
            given[name][:5] = np.inf

    assert healthy_in(search) == EVERY_SIGN - {"all-finite"}


def test_too_few_gradients_show_no_healthy_sign() -> None:
    """However many rows without gradients follow."""
    limits = Thresholds()
    given = columns(200)
    for name in NORMS:
        given[name] = [*given[name][:19], *[None] * 181]
    run = evidence(given)
    assert not is_enough(run, limits)
    assert list(healthy_signs(run, [], limits)) == []
    assert is_enough(evidence(columns(20)), limits)
