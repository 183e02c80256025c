"""Diagnosis of whole runs: finished, alive and crashed, from the command line and from Python."""

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ava_pipeline import TelemetryCollector
from ava_pipeline.cli import app
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.contract.manifest import Attempt, StepCounters
from ava_pipeline.diagnose.diagnose import diagnose_run
from ava_pipeline.errors import NotARunError
from ava_pipeline.read.run import open_run
from tests.collect.models import backward, tiny
from tests.validate.building import NOW, RunBuilder

SEVERITIES: tuple[Severity, ...] = ("warning", "info")

# A process that is killed while it trains, its features detached.
LOOP = """
import os, signal, sys
import torch
from torch import nn
from ava_pipeline import TelemetryCollector
model = nn.Sequential()
model.add_module("backbone", nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
model.add_module("head", nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
telemetry = TelemetryCollector(model, optimizer, sys.argv[1], collect_every_n=1, formats=["parquet"])
for batch in range(1, 61):
    optimizer.zero_grad()
    model.head(model.backbone(torch.randn(8, 4)).detach()).square().mean().backward()
    telemetry.step()
telemetry.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def trained(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TelemetryCollector:
    """A training that has not ended yet, with 60 rows on the disk."""
    telemetry = TelemetryCollector(model, optimizer, root, collect_every_n=1, formats=["parquet"])
    for batch in range(1, 61):
        optimizer.zero_grad()
        loss = backward(model, seed=batch)
        telemetry.step(0, values={"loss": loss})
    telemetry.flush()
    return telemetry


def test_a_run_is_diagnosed_after_it_was_killed(tmp_path: Path) -> None:
    """A backbone without gradients is found in the rows that SIGKILL left."""
    command = [sys.executable, "-c", LOOP, str(tmp_path / "run")]
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    found = diagnose_run(tmp_path / "run")
    (finding,) = [finding for finding in found.findings if finding.sign == "backbone-not-learning"]
    assert (finding.batch_idx, finding.batch_idx_end) == (1, 60)
    assert not found.is_healthy


def test_a_group_frozen_on_purpose_is_information(tmp_path: Path) -> None:
    """The manifest says that its parameters required no gradients."""
    model, optimizer = tiny()
    model.backbone[2].requires_grad_(requires_grad=False)
    trained(tmp_path / "run", model, optimizer).close()
    found = diagnose_run(tmp_path / "run")
    assert [(one.sign, one.severity, one.column) for one in found.findings] == [("frozen", "info", "backbone_2")]
    assert found.is_healthy


def test_a_good_run_is_called_healthy(tmp_path: Path) -> None:
    """With the figures of the healthy signs and exit status 0, while it is written and afterwards."""
    run = tmp_path / "run"
    with trained(run, *tiny()):
        found = diagnose_run(open_run(run))
        assert open_run(run).manifest.status == "running"
    assert found.findings == ()
    assert found.verdict == "healthy"
    assert {"all-finite", "norms-steady", "rates-in-order", "rows-complete"} <= {one.sign for one in found.healthy}
    done = CliRunner().invoke(app, ["diagnose", str(run)])
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"{run}: healthy.\n")
    assert "[backbone-learning]" in done.output


@pytest.mark.parametrize("num_rows", [0, 12])
def test_a_run_of_too_few_rows_is_not_called_healthy(tmp_path: Path, num_rows: int) -> None:
    """No warning and exit status 0, but no healthy sign either."""
    run = RunBuilder(root=tmp_path / "run", batches=range(1, num_rows + 1)).write()
    done = CliRunner().invoke(app, ["diagnose", str(run)])
    assert (done.exit_code, done.output) == (0, f"{run}: too few rows to tell.\n")
    found = diagnose_run(run)
    assert (found.is_healthy, found.to_json()["verdict"]) == (False, "too few rows to tell")


def test_rows_without_a_gradient_are_not_healthy(tmp_path: Path) -> None:
    """A loop that calls `step` and never backward."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for _ in range(40):
            telemetry.step(0)
    found = diagnose_run(tmp_path)
    assert [one.sign for one in found.findings] == ["misuse", "not-measured"]
    assert (found.verdict, found.healthy) == ("not healthy", ())


def loop(
    root: Path, *, clips_before: bool, steps_before: bool = False, dtype: torch.dtype = torch.float32
) -> list[str]:
    """60 batches that are clipped before or after `step`; returns the warnings in events.csv."""
    model, optimizer = tiny()
    model.to(dtype)
    with TelemetryCollector(model, optimizer, root, collect_every_n=1) as telemetry:
        for batch in range(1, 61):
            optimizer.zero_grad()
            loss = backward(model, seed=batch, dtype=dtype)
            if clips_before:
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            if steps_before:
                optimizer.step()
            telemetry.step(0, values={"loss": loss})
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            if not steps_before:
                optimizer.step()
    return [event["event"] for event in open_run(root).events().to_dict("records") if event["severity"] != "info"]


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_gradients_that_were_clipped_before_step_are_not_healthy(
    tmp_path: Path, dtype: torch.dtype, accuracy: float
) -> None:
    """While training and afterwards; clipped after `step`, the same training is."""
    assert loop(tmp_path / "before", clips_before=True, dtype=dtype) == ["clipped_before_step"]
    found = diagnose_run(tmp_path / "before")
    (finding,) = found.findings
    assert (finding.id, finding.batch_idx, finding.batch_idx_end) == ("clipped-before-step", 1, 60)
    assert finding.value == pytest.approx(0.05, rel=accuracy)
    assert found.verdict == "not healthy"
    assert "norms-steady" not in {one.sign for one in found.healthy}
    assert loop(tmp_path / "after", clips_before=False, dtype=dtype) == []
    assert diagnose_run(tmp_path / "after").is_healthy


def test_a_step_that_came_after_the_optimizers_is_not_healthy(tmp_path: Path) -> None:
    """The event that says so is a finding, with its remedy."""
    assert loop(tmp_path, clips_before=False, steps_before=True) == ["misuse"]
    (finding,) = diagnose_run(tmp_path).findings
    assert (finding.id, finding.severity, finding.batch_idx) == ("misuse", "warning", 1)
    assert "called after optimizer.step()" in finding.message
    assert "before clipping and optimizer.step()" in finding.message


def test_a_replaced_optimizer_is_not_healthy(tmp_path: Path) -> None:
    """The rows cannot show it, so the event is a finding; one of severity info, that it is over, is not."""

    def event(severity: Severity) -> Event:
        message = "the optimizer no longer steps."
        return Event(
            event="optimizer_replaced", severity=severity, message=message, batch_idx=30, batch_idx_end=40, epoch=0
        )

    runs = {
        severity: RunBuilder(root=tmp_path / severity, batches=range(1, 61), events=[event(severity)]).write()
        for severity in SEVERITIES
    }
    (finding,) = diagnose_run(runs["warning"]).findings
    assert (finding.id, finding.severity, finding.message) == (
        "optimizer-replaced",
        "warning",
        "the optimizer no longer steps.",
    )
    assert (finding.batch_idx, finding.batch_idx_end) == (30, 40)
    healthy = {severity: {one.sign for one in diagnose_run(run).healthy} for severity, run in runs.items()}
    assert healthy["info"] - healthy["warning"] == {"rates-in-order"}
    assert diagnose_run(runs["info"]).is_healthy


def built(root: Path) -> Path:
    """A run of 60 rows: a negligible backbone from batch 210 on, a gap and a spike with samples."""
    batches = tuple(range(10, 601, 10))
    norms: dict[int, dict[str, object]] = {batch: {"backbone_layer4": 1e-9} for batch in batches[20:]}
    events = [
        Event(event="gap", severity="warning", message="3 steps.", batch_idx=11, batch_idx_end=19, epoch=0, value=3.0),
        Event(
            event="spike",
            severity="warning",
            message="It spiked. Samples of batch 500: a.jpg, b.jpg and 4 more.",
            batch_idx=500,
            batch_idx_end=500,
            epoch=2,
        ),
    ]
    norms[500] = {"backbone_layer4": 1e-9, "overall": 1e6}
    return RunBuilder(root=root / "run", batches=batches, norms=norms, events=events).write()


def test_findings_come_by_severity_and_batch_and_name_samples(tmp_path: Path) -> None:
    """In a run with three findings."""
    found = diagnose_run(built(tmp_path)).findings
    assert [(one.sign, one.batch_idx) for one in found] == [
        ("telemetry-gap", 11),
        ("backbone-not-learning", 210),
        ("spike", 500),
    ]
    assert found[2].sample_ids == ("a.jpg", "b.jpg")


def gaps(root: Path, batches: Sequence[int], counters: StepCounters, *, deferred: int = 0) -> list[Finding]:
    """The gaps found in a run that collected each batch and recorded no event."""
    attempt = Attempt(number=1, started_utc=NOW, collect_every_n=1, deferred=deferred, counters=counters, rows={"x": 1})
    run = RunBuilder(root=root / "run", batches=batches, attempts=[attempt]).write()
    found = diagnose_run(run)
    gaps_found = [finding for finding in found.findings if finding.sign == "telemetry-gap"]
    assert ("rows-complete" in {one.sign for one in found.healthy}) is not bool(gaps_found)
    return gaps_found


def test_missing_rows_are_found_without_an_event(tmp_path: Path) -> None:
    """By the batches between rows, or else by the manifest's counters."""
    holed = [*range(1, 101), *range(150, 160), *range(162, 201)]
    counters = StepCounters(collected=200, written=149, dropped=51)
    (gap,) = gaps(tmp_path / "holes", holed, counters)
    assert (gap.batch_idx, gap.batch_idx_end, gap.value) == (101, 161, 51.0)
    (gap,) = gaps(tmp_path / "deferred", holed, counters, deferred=1)
    assert (gap.batch_idx, gap.batch_idx_end, gap.value) == (101, 149, 49.0)
    (gap,) = gaps(tmp_path / "counted", range(1, 151), StepCounters(collected=200, written=150, dropped=50))
    assert (gap.value, gap.message) == (
        50.0,
        "rows are missing: 50 of 200 collected steps, according to the manifest's counters.",
    )
    (gap,) = gaps(tmp_path / "cut", range(1, 151), StepCounters(collected=200, written=200))
    assert gap.value == 50.0


def test_rows_that_an_event_explains_are_one_finding(tmp_path: Path) -> None:
    """The event's own, and no second one for the batches between rows."""
    event = Event(
        event="gap", severity="warning", message="49 steps.", batch_idx=101, batch_idx_end=149, epoch=0, value=49.0
    )
    attempt = Attempt(number=1, started_utc=NOW, collect_every_n=1, status="finished", rows={"x": 1})
    batches = [*range(1, 101), *range(150, 201)]
    run = RunBuilder(root=tmp_path / "run", batches=batches, attempts=[attempt], events=[event]).write()
    (gap,) = [finding for finding in diagnose_run(run).findings if finding.id == "telemetry-gap"]
    assert (gap.batch_idx, gap.batch_idx_end, gap.message) == (101, 149, "rows are missing: 49 steps.")


def test_rows_that_were_deferred_are_not_missing(tmp_path: Path) -> None:
    """Up to the number of deferred steps in the manifest; a complete run reports its number of steps."""
    assert gaps(tmp_path, range(2, 201, 2), StepCounters(collected=100, written=100), deferred=100) == []
    assert "rows exist for all 100 of 100 collected steps." in diagnose_run(tmp_path / "run").to_text("run")


def test_json_holds_everything(tmp_path: Path) -> None:
    """Exit status 1, and every attribute of each finding."""
    run = built(tmp_path)
    done = CliRunner().invoke(app, ["diagnose", str(run), "--json"])
    assert done.exit_code == 1
    printed = json.loads(done.output)
    assert (printed["run"], printed["is_healthy"]) == (str(run), False)
    first = printed["findings"][1]
    assert first["id"] == "backbone-not-learning"
    assert first["advice"]
    assert set(first) == {field.name for field in dataclasses.fields(Finding)} - {"where"}  # of other programs' runs


def test_a_figure_that_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    """JSON has no nan."""
    run = RunBuilder(root=tmp_path / "run", norms={50: {"overall": float("nan")}}).write()
    (finding,) = diagnose_run(run).to_json()["findings"]
    assert (finding["id"], finding["value"]) == ("non-finite", None)


def test_thresholds_are_those_of_the_run(tmp_path: Path) -> None:
    """Those of its latest attempt; invalid ones cause a warning, and the defaults are used."""
    builder = RunBuilder(root=tmp_path / "run", norms={})
    assert diagnose_run(builder.write()).findings == ()
    builder.attempts[-1].thresholds = {"exploding_ratio": 1e-6, "least_rows": 4}
    builder.write_manifest()
    assert [one.sign for one in diagnose_run(builder.root).findings] == ["exploding"]
    builder.attempts[-1].thresholds = {"no_such_threshold": 1.0}
    builder.write_manifest()
    with pytest.warns(UserWarning, match="default thresholds"):
        assert diagnose_run(builder.root).findings == ()


def test_a_directory_that_is_not_a_run_is_wrong_usage(tmp_path: Path) -> None:
    """It raises an exception for that case."""
    with pytest.raises(NotARunError, match="is not a run"):
        diagnose_run(tmp_path)


def test_a_diagnosis_loads_neither_pandas_nor_scipy(tmp_path: Path) -> None:
    """In a fresh interpreter, for a run with rows, events and findings."""
    code = (
        "import sys; from ava_pipeline import diagnose_run; assert diagnose_run(sys.argv[1]).findings; "
        "print(sorted({'pandas', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(built(tmp_path))]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_help_gives_an_example() -> None:
    """And the exit statuses."""
    text = CliRunner().invoke(app, ["diagnose", "--help"]).output
    assert "Example: ava-pipeline diagnose outputs/ava/demo" in text
    assert "0 healthy" in text
