"""`on_finding` calls the user's functions in the training thread."""

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.contract.finding import Finding
from ava_pipeline.diagnose.diagnose import diagnose_run
from tests.collect.models import backward, tiny

MAX_STEPS = 500


class PoisonedError(Exception):
    """Raised by a callback that ends the training."""


def poison_at(telemetry: TelemetryCollector, model: nn.Module, batch: int, *, every: int = 1) -> None:
    """One step of which the gradients of batch 60 are a thousand times too large."""
    model.zero_grad()
    loss = backward(model, seed=batch)
    if batch == 60:
        for parameter in model.parameters():
            parameter.grad = parameter.grad * 1000 if parameter.grad is not None else None
    telemetry.step(0, values={"loss": loss}, sample_ids=[f"{batch}.jpg"])
    if batch % every == 0:
        telemetry.flush()


def test_a_callback_is_called_in_the_training_thread_with_the_poisoned_batch(tmp_path: Path) -> None:
    """At a later `step`, never in the background; events.csv names the batch and its samples too."""
    model, optimizer = tiny()
    found: list[tuple[Finding, str]] = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        telemetry.on_finding(lambda finding: found.append((finding, threading.current_thread().name)))
        for batch in range(1, MAX_STEPS):
            poison_at(telemetry, model, batch)
            if found:
                break
    finding, thread = found[0]
    assert thread == threading.current_thread().name
    assert (finding.sign, finding.batch_idx, finding.sample_ids) == ("spike", 60, ("60.jpg",))
    (event,) = open_run(tmp_path).events().to_dict("records")
    assert (event["event"], event["batch_idx"]) == ("spike", 60)
    assert "60.jpg" in event["message"]
    afterwards = [one for one in diagnose_run(tmp_path).findings if one.sign == "spike"]
    assert [(one.batch_idx, one.sample_ids) for one in afterwards] == [(60, ("60.jpg",))]


def test_a_callback_can_end_the_training(tmp_path: Path) -> None:
    """What it raises comes out of `step`, after the step's own row was taken."""
    model, optimizer = tiny()

    def stop(finding: Finding) -> None:
        raise PoisonedError(finding.sign)

    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    telemetry.on_finding(stop)
    with pytest.raises(PoisonedError, match="spike"), telemetry:  # noqa: PT012  # a training is a loop
        for num_steps in range(1, MAX_STEPS):
            poison_at(telemetry, model, num_steps)
    assert num_steps < MAX_STEPS - 1
    assert telemetry.stats().written == num_steps
    assert open_run(tmp_path).manifest.status == "failed"


def test_a_finding_is_delivered_by_a_step_that_collects_nothing(tmp_path: Path) -> None:
    """The next call delivers it, collects no row, and the count continues."""
    model, optimizer = tiny()
    found: list[Finding] = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1000) as telemetry:
        telemetry.on_finding(found.append)
        telemetry.step(0)
        finding = a_finding()
        telemetry._findings.put(finding)
        assert telemetry.step(0) is False
        assert found == [finding]
        assert telemetry.step(0) is False
        assert found == [finding]
    assert telemetry.state_dict()["batch_idx"] == 3


def test_a_step_that_only_accumulates_leaves_findings_to_the_next(tmp_path: Path) -> None:
    """They are not lost."""
    model, optimizer = tiny()
    found: list[Finding] = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1000) as telemetry:
        telemetry.on_finding(found.append)
        telemetry._findings.put(a_finding())
        telemetry.step(0, accumulating=True)
        assert found == []
        telemetry.step(0)
    assert len(found) == 1


def test_findings_do_not_change_when_rows_are_due(tmp_path: Path) -> None:
    """A finding neither brings a row forward nor puts it off."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=3) as telemetry:
        telemetry.on_finding(print)
        collected = []
        for batch in range(1, 13):
            telemetry._findings.put(a_finding())
            model.zero_grad()
            backward(model, seed=batch)
            collected.append(telemetry.step(0))
            optimizer.step()
    assert [batch for batch, is_row in enumerate(collected, start=1) if is_row] == [3, 6, 9, 12]
    assert open_run(tmp_path).gradient_norms()["batch_idx"].tolist() == [3, 6, 9, 12]


def test_a_callback_registered_later_gets_the_findings_that_wait(tmp_path: Path) -> None:
    """Several functions, each with every finding from then on."""
    model, optimizer = tiny()
    first: list[Finding] = []
    second: list[Finding] = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1000) as telemetry:
        telemetry._findings.put(a_finding())
        telemetry.on_finding(first.append)
        telemetry.on_finding(second.append)
        telemetry.step(0)
    assert len(first) == len(second) == 1


def test_a_callback_that_raises_keeps_no_finding_from_the_others(tmp_path: Path) -> None:
    """They are called by the next `step`, once, before later findings are delivered."""
    model, optimizer = tiny()
    heard: list[Finding] = []

    def stop(finding: Finding) -> None:
        raise PoisonedError(finding.sign)

    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1000) as telemetry:
        telemetry.on_finding(stop)
        telemetry.on_finding(heard.append)
        telemetry._findings.put(a_finding())
        with pytest.raises(PoisonedError):
            telemetry.step(0)
        assert heard == []
        telemetry.step(0)
        assert len(heard) == 1
        telemetry.step(0)
    assert len(heard) == 1


def test_a_forgotten_collector_is_freed(tmp_path: Path) -> None:
    """The background thread holds nothing that would keep it alive."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    poison_at(telemetry, model, 1)
    gone = weakref.ref(telemetry)
    with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031  # both are needed for the warning
        del telemetry
        gc.collect()
    assert gone() is None


def test_signs_can_be_turned_off_while_training(tmp_path: Path) -> None:
    """No event is written then, and diagnose still finds the sign."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, signs={"on_line": False}) as telemetry:
        for batch in range(1, 100):
            poison_at(telemetry, model, batch, every=50)
    assert open_run(tmp_path).events().empty
    assert "spike" in {finding.sign for finding in diagnose_run(tmp_path).findings}


def a_finding() -> Finding:
    """Any finding."""
    return Finding(
        id="spike",
        severity="warning",
        column="overall",
        batch_idx=1,
        batch_idx_end=1,
        epoch=0,
        value=1.0,
        message="A spike.",
        advice="Look.",
    )


def test_a_loss_scale_that_begins_too_high_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Real float16: the first steps are skipped while GradScaler halves its scale, and all is well afterwards."""
    torch.manual_seed(0)
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    found: list[Finding] = []
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        telemetry.on_finding(found.append)
        for _ in range(60):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = model(torch.randn(4, 6)).float().square().mean()
            scaler.scale(loss).backward()
            telemetry.step(0, values={"loss": loss.detach()})
            telemetry.flush()
            scaler.step(optimizer)
            scaler.update()
    events = open_run(tmp_path).events()
    assert "non_finite" in set(events["event"])
    assert set(events["severity"]) == {"info"}
    assert found == []
    assert diagnose_run(tmp_path).is_healthy
