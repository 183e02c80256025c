"""The diagnosis of runs that record weights, and of runs that record no gradients."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ava_pipeline import TelemetryCollector
from ava_pipeline.cli import app
from ava_pipeline.diagnose.diagnose import diagnose_run
from tests.collect.models import backward, tiny
from tests.validate.building import GROUPS, RunBuilder
from tests.validate.more_tables import weights

BATCHES = tuple(range(10, 601, 10))


@pytest.fixture(autouse=True)
def _trained_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say in the manifest which groups are trained, and at which rate."""
    rates = {"backbone_layer4": ("lr_group_0",), "overall": ("lr_group_0", "lr_group_1")}
    for name, group in GROUPS.items():
        trained = {"trainable": True, "learning_rates": rates.get(name, ("lr_group_1",))}
        monkeypatch.setitem(GROUPS, name, group.model_copy(update=trained))


def signs(root: Path, *, backbone: float, batches: Sequence[int] = BATCHES) -> list[tuple[str, str | None]]:
    """The findings in a run whose backbone moves by so much in each row, and its verdict."""
    found = diagnose_run(RunBuilder(root=root, batches=batches, more=weights(batches, backbone=backbone)).write())
    return [*((one.id, one.column) for one in found.findings), (found.verdict, None)]


def test_a_backbone_whose_weights_stay_the_same_is_not_healthy(tmp_path: Path) -> None:
    """One that moves is."""
    expected = [("weights-not-moving", "backbone_layer4"), ("not healthy", None)]
    assert signs(tmp_path / "still", backbone=0.0) == expected
    assert signs(tmp_path / "moving", backbone=1e-6) == [("healthy", None)]


def test_a_run_without_gradients_is_neither_healthy_nor_not(tmp_path: Path) -> None:
    """The finding says that they were not recorded, and the verdict that they were not measured; exit status 0."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, track_gradients=False) as telemetry:
        for batch in range(1, 61):
            optimizer.zero_grad()
            loss = backward(model, seed=batch)
            telemetry.step(0, values={"loss": loss})
            optimizer.step()
    found = diagnose_run(tmp_path)
    assert [(one.id, one.severity) for one in found.findings] == [("not-measured", "info")]
    assert (found.verdict, found.is_healthy, found.healthy) == ("gradients not measured", False, ())
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert done.exit_code == 0
    assert "gradients were not recorded (track_gradients is off)" in done.output
    assert done.output.endswith(f"{tmp_path}: gradients not measured (1 info).\n")


def test_what_else_is_wrong_is_found_without_gradients(tmp_path: Path) -> None:
    """The weights show that the backbone does not learn; and a few rows say nothing either way."""
    more = weights(BATCHES, backbone=0.0)
    run = RunBuilder(root=tmp_path / "still", batches=BATCHES, without=["gradient_norms"], more=more).write()
    found = diagnose_run(run)
    assert {one.id for one in found.findings} == {"weights-not-moving", "not-measured"}
    assert found.verdict == "not healthy"
    few = RunBuilder(root=tmp_path / "few", batches=BATCHES[:5], without=["gradient_norms"]).write()
    assert diagnose_run(few).verdict == "too few rows to tell"
