"""A finding: its place, the line it prints, and its JSON."""

import json
import math
from typing import Any

import pytest

from ava_pipeline.contract.finding import Finding

SPIKE: dict[str, Any] = {"id": "loss-spike", "severity": "warning", "message": "loss is 9."}


@pytest.mark.parametrize(
    ("place", "printed"),
    [
        ({}, ""),
        ({"batch_idx": 60, "batch_idx_end": 60}, "batch 60"),
        ({"batch_idx": 60, "batch_idx_end": 62}, "batch 60 to 62"),
        ({"file": "telemetry/steps.csv"}, "telemetry/steps.csv"),
        ({"file": "telemetry/steps.csv", "row": 4}, "telemetry/steps.csv:4"),
        ({"file": "telemetry/steps.csv", "row": 4, "line": 5}, "telemetry/steps.csv:5"),
        ({"file": "telemetry/steps.csv", "row": 4, "line": 5, "column": "loss"}, "telemetry/steps.csv:5 loss"),
        ({"file": "telemetry/steps.csv", "batch_idx": 60, "batch_idx_end": 60}, "telemetry/steps.csv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_place_is_a_range_of_batches_or_a_line_of_a_file(place: dict[str, Any], printed: str) -> None:
    """A line as an editor counts it comes before a row; a finding about a whole run has no place."""
    assert Finding(**SPIKE, **place).place == printed


def test_a_finding_prints_as_one_line() -> None:
    """Place, severity, message and id; without a place, nothing stands before the severity."""
    assert str(Finding(**SPIKE)) == "warning: loss is 9. [loss-spike]"
    assert str(Finding(**SPIKE, batch_idx=3, batch_idx_end=3)) == "batch 3: warning: loss is 9. [loss-spike]"


def test_samples_and_advice_follow_indented() -> None:
    """Only the lines that have something to say are printed."""
    finding = Finding(**SPIKE, advice="Lower the rate.", sample_ids=("a.jpg", "b.jpg"))
    assert list(finding.lines()) == [str(finding), "    samples: a.jpg, b.jpg", "    Lower the rate."]
    assert list(Finding(**SPIKE).lines()) == ["warning: loss is 9. [loss-spike]"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_number_that_json_cannot_hold_is_null(value: float | None) -> None:
    """The file stays valid JSON, whatever was measured."""
    exported = Finding(**SPIKE, value=value, batch_idx=3, batch_idx_end=4, epoch=0).to_json()
    assert json.loads(json.dumps(exported, allow_nan=False))["value"] is None
    assert (exported["batch_idx"], exported["batch_idx_end"], exported["epoch"]) == (3, 4, 0)


def test_json_has_every_attribute() -> None:
    """Batches are null if the finding is not about batches; a text or a finite number is exported as it is."""
    exported = Finding(**SPIKE, file="metrics.csv", row=2, line=3, column="loss", value="9,0").to_json()
    assert exported == {
        **SPIKE,
        "advice": "",
        "batch_idx": None,
        "batch_idx_end": None,
        "epoch": None,
        "file": "metrics.csv",
        "row": 2,
        "line": 3,
        "column": "loss",
        "value": "9,0",
        "sample_ids": (),
    }
    assert Finding(**SPIKE, value=9.5).to_json()["value"] == 9.5


def test_the_id_has_two_other_names() -> None:
    """`sign` for callbacks of `on_finding`, and snake case for `events.csv`."""
    assert (Finding(**SPIKE).sign, Finding(**SPIKE).event) == ("loss-spike", "loss_spike")
