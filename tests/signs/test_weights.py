"""Weights that do not move although they should, updates beyond every doubt, and near misses of both."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Group, GroupSpan
from ava_pipeline.signs.evidence import Evidence, TableValues
from ava_pipeline.signs.healthy import healthy_signs
from ava_pipeline.signs.registry import listed_findings
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.signs.weights import update_ratio_of
from tests.signs.rows import EVERY, GROUPS, NUM_ROWS, columns, evidence

COLUMNS = ("overall", "trunk", "top", "first", "second")
Weights = dict[str, Any]


def moved(ratio: float) -> Weights:
    """Norms of 2 and, in each row but the first, as large a movement as this share of it."""
    norms = {name: np.full(NUM_ROWS, 2.0) for name in COLUMNS}
    deltas = {name: np.full(NUM_ROWS, 2.0 * ratio) for name in COLUMNS}
    for column in deltas.values():
        column[0] = np.nan
    return {"norms": norms, "deltas": deltas, "num": [None, *[EVERY] * (NUM_ROWS - 1)], "rates": columns()}


def run_of(given: Weights, groups: dict[str, Group] = GROUPS) -> Evidence:
    """The healthy gradients with these weights; nan of a delta is null."""
    base = evidence(given["rates"], groups)
    keys = {"batch_idx": pa.array(np.arange(1, NUM_ROWS + 1) * EVERY), "epoch": pa.array(np.zeros(NUM_ROWS, np.int64))}
    norms = {name: pa.array(column) for name, column in given["norms"].items()}
    deltas = {name: pa.array(column, mask=np.isnan(column)) for name, column in given["deltas"].items()}
    return Evidence(
        norms=base.norms,
        rates=base.rates,
        steps=base.steps,
        groups=groups,
        weight_norms=TableValues(pa.table({**keys, **norms})),
        weight_deltas=TableValues(pa.table({**keys, "num_batches": pa.array(given["num"], pa.int64()), **deltas})),
    )


def found_in(
    change: Callable[[Weights], object], ratio: float = 1e-2, groups: dict[str, Group] = GROUPS
) -> list[Finding]:
    """The findings in weights that move by a share of their norm in every row, after a change."""
    given = moved(ratio)
    change(given)
    return [one for one in listed_findings(run_of(given, groups), Thresholds()) if one.id != "frozen"]


def unchanged(given: Weights) -> None:
    """As they are."""


def still(given: Weights, *names: str, rows: slice = slice(40, 80)) -> Weights:
    """Let groups stay as they are in some rows."""
    for name in names:
        given["deltas"][name][rows] = 0.0
    return given


def test_a_trained_group_whose_weights_stay_the_same_is_a_warning() -> None:
    """In its batches; and it does not count as learning, nor do its parts."""
    (finding,) = found_in(lambda given: still(given, "top", "first", "second", rows=slice(40, None)))
    assert (finding.id, finding.severity, finding.column) == ("weights-not-moving", "warning", "top")
    assert (finding.batch_idx, finding.batch_idx_end, finding.value) == (410, 2000, 0.0)
    given = moved(1e-2)
    assert "head-learning" in {one.id for one in healthy_signs(run_of(given), [], Thresholds())}
    still(given, "top", "first", "second", rows=slice(40, None))
    healthy = {one.id for one in healthy_signs(run_of(given), [finding], Thresholds())}
    assert "head-learning" not in healthy
    assert "backbone-learning" in healthy


def test_a_whole_model_that_stays_the_same_is_one_warning() -> None:
    """Of the group that contains all others; a group that stays longer has a finding of its own."""
    assert [one.column for one in found_in(lambda given: still(given, *COLUMNS))] == ["overall"]
    (whole, part) = found_in(lambda given: (still(given, *COLUMNS), still(given, "first", rows=slice(100, 150))))
    assert [whole.column, part.column] == ["overall", "first"]


def with_rates(given: Weights, rate: float) -> Weights:
    """Set the head's rate in the rows from 30 on."""
    given["rates"]["lr_group_1"] = np.full(NUM_ROWS, 1e-3)
    given["rates"]["lr_group_1"][30:] = rate
    return given


@pytest.mark.parametrize(
    "change",
    [
        unchanged,
        lambda given: still(given, "top", rows=slice(40, 59)),  # too few rows
        lambda given: (still(given, "top"), given["deltas"]["top"].__setitem__(slice(40, 80, 15), 1e-30)),
        lambda given: (still(given, "top"), given["norms"]["top"].__setitem__(slice(None), 0.0)),  # a bias of 0
        lambda given: given["deltas"]["top"].__setitem__(slice(40, 80), np.nan),  # not measured
        lambda given: (still(given, "top"), with_rates(given, 1e-7)),  # the end of a schedule
    ],
    ids=["healthy", "19 rows", "moves now and then", "norm of 0", "null", "negligible rate"],
)
def test_a_near_miss_of_weights_that_stay_is_no_finding(change: Callable[[Weights], object]) -> None:
    """Also a rate below a thousandth of the highest: updates may be lost to rounding on purpose."""
    assert [one.id for one in found_in(change) if one.column == "top"] == []


def test_a_rate_of_0_is_reported_as_that_alone() -> None:
    """The weights cannot move then."""
    found = found_in(lambda given: (still(given, "top", "first", "second"), with_rates(given, 0.0)))
    assert {one.id for one in found} == {"learning-rate-zero"}


def test_a_frozen_group_may_stay_as_it_is() -> None:
    """Over the batches in which the manifest says that it is frozen."""

    def changed(*spans: GroupSpan) -> dict[str, Group]:
        return GROUPS | {"trunk": GROUPS["trunk"].model_copy(update={"spans": spans})}

    rates = {"parameters": ("a",), "learning_rates": ("lr_group_0",)}
    thawed = GroupSpan(first_batch=410, trainable=True, **rates)
    frozen = GroupSpan(first_batch=1, trainable=False, **rates)
    whole = {"trunk": GROUPS["trunk"].model_copy(update={"trainable": False})}
    assert found_in(lambda given: still(given, "trunk", rows=slice(0, 200)), groups=GROUPS | whole) == []
    assert found_in(lambda given: still(given, "trunk", rows=slice(0, 40)), groups=changed(frozen, thawed)) == []
    (finding,) = found_in(lambda given: still(given, "trunk"), groups=changed(frozen, thawed))
    assert (finding.id, finding.batch_idx) == ("weights-not-moving", 410)


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [
        (1.1, "warning"),  # above a tenth in each of ten batches, even if they all have one direction
        (0.9, None),
        (0.33, None),  # above a tenth only if the directions are independent
        (3.1e-9, "info"),  # below 1e-9, even if the directions are independent
        (3.3e-9, None),
        (9e-9, None),  # below 1e-9 only if they all have one direction
    ],
)
def test_updates_are_judged_by_what_holds_for_every_direction(ratio: float, severity: str | None) -> None:
    """Rows are ten batches apart: their updates add up to something between √10 and 10 times one of them."""
    found = found_in(unchanged, ratio)
    assert [(one.id, one.severity, one.column) for one in found] == (
        [("update-ratio", severity, "overall")] if severity else []
    )


def test_the_value_of_a_ratio_is_that_of_a_batch() -> None:
    """The smallest that is possible of large updates, the largest that is of small ones."""
    (large,), (small,) = found_in(unchanged, 2.0), found_in(unchanged, 1e-10)
    assert large.value == pytest.approx(0.2)
    assert small.value == pytest.approx(1e-10 / np.sqrt(10))


def test_large_updates_in_a_few_rows_are_no_finding() -> None:
    """Layers that begin near 0 move far at first."""
    assert found_in(lambda given: given["deltas"]["top"].__setitem__(slice(1, 20), 5.0)) == []


def test_weights_are_not_judged_without_rates() -> None:
    """Whether they should move is not known then."""
    given = moved(0.0)
    del given["rates"]["lr_group_0"], given["rates"]["lr_group_1"]
    assert listed_findings(run_of(given), Thresholds()) == []


def test_the_ratio_tells_null_from_nan() -> None:
    """Null: the first row, a norm of 0, and a norm without a row. Not finite: what was measured so."""
    given = moved(0.5)
    given["norms"]["top"][3] = 0.0
    run = run_of(given)
    ratio = update_ratio_of(run.weight_norms, run.weight_deltas, "top")
    assert ratio is not None
    assert np.flatnonzero(ratio.is_null).tolist() == [0, 3]
    assert ratio.values[[1, 2, 4]].tolist() == [0.5] * 3
    assert update_ratio_of(run.weight_norms, run.weight_deltas, "unknown") is None
