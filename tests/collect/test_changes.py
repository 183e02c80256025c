"""What changes while a training runs is recorded from the first row that meets it; rows before it stay as they are."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from ava_pipeline import TelemetryCollector, diagnose_run, open_run, validate_run
from ava_pipeline.errors import GroupsError, MisuseError
from tests.collect.models import TinyNet, backward, tiny


def collector(model: nn.Module, optimizer: Any, root: Path, **options: Any) -> TelemetryCollector:
    """A collector of every batch."""
    return TelemetryCollector(model, optimizer, root, collect_every_n=1, **options)


def train(telemetry: TelemetryCollector, model: nn.Module, optimizer: torch.optim.Optimizer, batches: range) -> None:
    """Batches of a user's loop, seeded by their number."""
    for batch in batches:
        optimizer.zero_grad()
        loss = backward(model, seed=batch)
        telemetry.step(0, values={"loss": loss})
        optimizer.step()


def norm(module: nn.Module) -> float:
    """The gradients of a module as one vector, in float64."""
    gradients = [one.grad.double().reshape(-1) for one in module.parameters() if one.grad is not None]
    return float(torch.cat(gradients).norm())


def events(root: Path, name: str) -> pd.DataFrame:
    """The events with a name."""
    rows = open_run(root).events()
    return rows[rows["event"] == name]


def test_a_parameter_group_that_is_added_gets_its_column(tmp_path: Path) -> None:
    """As in gradual unfreezing: older rows are empty, the manifest says from which batch, and names are kept."""
    model, _ = tiny()
    optimizer = torch.optim.SGD([{"params": model.backbone.parameters(), "name": "backbone"}], lr=0.01)
    with collector(model, optimizer, tmp_path) as telemetry:
        train(telemetry, model, optimizer, range(1, 4))
        optimizer.add_param_group({"params": model.mlp_head.parameters(), "lr": 0.5, "name": "head"})
        train(telemetry, model, optimizer, range(4, 7))
    run = open_run(tmp_path)
    rates = run.learning_rates()
    assert rates["lr_group_0"].tolist() == [0.01] * 6
    assert rates["lr_group_1"].isna().tolist() == [True] * 3 + [False] * 3
    assert rates["lr_group_1"].tolist()[3:] == [0.5] * 3
    assert pd.read_csv(tmp_path / "telemetry" / "learning_rates.csv").shape == (6, 4)
    head = run.manifest.groups["mlp_head"]
    assert [one.learning_rates for one in (head.at(3), head.at(4)) if one] == [(), ("lr_group_1",)]
    assert run.manifest.rate_names == {"lr_group_0": "backbone", "lr_group_1": "head"}
    assert "new from batch 4 on: lr_group_1" in events(tmp_path, "changed_columns")["message"].iloc[0]
    assert validate_run(tmp_path) == []


def test_a_group_added_to_the_first_of_two_optimizers_does_not_move_the_others_columns(tmp_path: Path) -> None:
    """A column keeps its meaning; the new one comes behind."""
    model, _ = tiny()
    first = torch.optim.SGD(model.backbone[:1].parameters(), lr=0.1)
    second = torch.optim.SGD(model.mlp_head.parameters(), lr=0.2)
    with collector(model, {"first": first, "second": second}, tmp_path) as telemetry:
        for batch in range(1, 5):
            if batch == 3:
                first.add_param_group({"params": model.backbone[2].parameters(), "lr": 0.3})
            backward(model, seed=batch)
            telemetry.step()
            first.step()
            second.step()
    rates = open_run(tmp_path).learning_rates()
    assert rates["lr_group_1"].tolist() == [0.2] * 4
    assert rates["lr_group_2"].tolist()[2:] == [0.3] * 2


def test_an_optimizer_that_was_made_anew_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One event and one warning; its rates are unknown, so they are null, until rebind() gives the new one."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path) as telemetry:
        train(telemetry, model, optimizer, range(1, 4))
        other = torch.optim.SGD(model.parameters(), lr=0.7)
        train(telemetry, model, other, range(4, 9))
        telemetry.rebind(optimizer=other)
        train(telemetry, model, other, range(9, 12))
    rates = open_run(tmp_path).learning_rates()
    known = rates["lr_group_0"].notna().tolist()
    assert known[:3] == [True] * 3
    assert known[5:8] == [False] * 3  # within a few batches
    assert rates["lr_group_0"].tolist()[8:] == [0.7] * 3
    assert rates["lr_group_1"].isna().tolist()[8:] == [True] * 3  # the new optimizer has one group
    assert len(events(tmp_path, "optimizer_replaced")) == 1
    assert events(tmp_path, "skipped_step").empty
    assert events(tmp_path, "misuse").empty
    assert sum("telemetry.rebind(optimizer=optimizer)" in message for message in caplog.messages) == 1
    assert validate_run(tmp_path) == []


@pytest.mark.parametrize("every", [2, 10])
def test_it_is_noticed_at_the_next_row_of_a_sparse_run(every: int, tmp_path: Path) -> None:
    """The first row after the change has no rates any more."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=every) as telemetry:
        train(telemetry, model, optimizer, range(1, 2 * every + 1))
        other = torch.optim.SGD(model.parameters(), lr=0.7)
        train(telemetry, model, other, range(2 * every + 1, 4 * every + 1))
    rates = open_run(tmp_path).learning_rates()["lr_group_0"]
    assert rates.notna().tolist()[:2] == [True, True]
    assert not rates.notna().tolist()[-1]
    assert len(events(tmp_path, "optimizer_replaced")) == 1


def test_weights_that_are_changed_by_hand_between_steps_are_no_other_optimizer(tmp_path: Path) -> None:
    """As weight averaging and clamping do."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path) as telemetry:
        for batch in range(1, 9):
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            optimizer.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.clamp_(-10, 10)
    assert events(tmp_path, "optimizer_replaced").empty


def test_a_head_that_was_replaced_is_noticed_and_rebind_goes_on(tmp_path: Path) -> None:
    """Its norms are null before, and those of the new head after; no row moves, and validation knows both heads."""
    model, optimizer = tiny()
    expected = []
    with collector(model, optimizer, tmp_path) as telemetry:
        train(telemetry, model, optimizer, range(1, 4))
        model.mlp_head = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10))
        train(telemetry, model, optimizer, range(4, 6))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        telemetry.rebind(model=model, optimizer=optimizer)
        for batch in range(6, 9):
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            expected.append(norm(model.mlp_head))
            optimizer.step()
    run = open_run(tmp_path)
    norms = run.gradient_norms()
    assert norms["batch_idx"].tolist() == list(range(1, 9))
    assert norms["mlp_head"].isna().tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert norms["mlp_head"].tolist()[5:] == pytest.approx(expected, rel=1e-5)
    assert norms["mlp_layer_4"].isna().tolist() == [True] * 5 + [False] * 3
    assert norms["mlp_layer_3"].notna().tolist() == [True] * 3 + [False] * 5
    (warning,) = events(tmp_path, "misuse")["message"]
    assert "the model no longer has mlp_head.0.weight" in warning
    assert "telemetry.rebind(model=model)" in warning
    head = run.manifest.groups["mlp_head"]
    assert head.at(3) != head.at(6)
    assert run.manifest.groups["mlp_layer_3"].at(6) is None
    assert len(run.manifest.attempts) == 1
    assert validate_run(tmp_path) == []


def test_parameters_that_only_the_optimizer_has_are_named(tmp_path: Path) -> None:
    """A layer added to the model and the optimizer after the first row."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path) as telemetry:
        train(telemetry, model, optimizer, range(1, 3))
        model.extra = nn.Linear(3, 3)
        optimizer.add_param_group({"params": model.extra.parameters()})
        train(telemetry, model, optimizer, range(3, 5))
    (warning,) = events(tmp_path, "misuse")["message"]
    assert "hold 2 parameters that the collector does not know" in warning


def test_unfreezing_is_in_the_manifest_and_the_diagnosis(tmp_path: Path) -> None:
    """From the batch on at which the backbone is trained."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.backbone.requires_grad_(requires_grad=False)
    with collector(model, optimizer, tmp_path) as telemetry:
        train(telemetry, model, optimizer, range(1, 21))
        model.backbone.requires_grad_(requires_grad=True)
        train(telemetry, model, optimizer, range(21, 41))
    backbone = open_run(tmp_path).manifest.groups["backbone_2"]
    assert [one.trainable for one in (backbone.at(20), backbone.at(21)) if one] == [False, True]
    found = {finding.column: finding for finding in diagnose_run(tmp_path).findings if finding.id == "frozen"}
    assert (found["backbone_2"].batch_idx, found["backbone_2"].batch_idx_end) == (1, 20)
    assert "it is trained from batch 21 on" in found["backbone_2"].message
    assert validate_run(tmp_path) == []


def test_freezing_again_is_in_the_manifest_too(tmp_path: Path) -> None:
    """Every span is kept, and a row without gradients of a frozen group is no finding."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with collector(model, optimizer, tmp_path) as telemetry:
        for begin, is_trained in ((1, True), (11, False), (31, True)):
            model.backbone.requires_grad_(requires_grad=is_trained)
            train(telemetry, model, optimizer, range(begin, begin + (20 if begin > 1 else 10)))
    spans = open_run(tmp_path).manifest.groups["backbone_2"].spans
    assert [(span.first_batch, span.trainable) for span in spans] == [(1, True), (11, False), (31, True)]
    assert "backbone-not-learning" not in {finding.id for finding in diagnose_run(tmp_path).findings}


def test_a_value_that_comes_later_gets_its_column(tmp_path: Path) -> None:
    """Older rows are empty in CSV and null in Parquet; a value that is left out is null."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path) as telemetry:
        for batch in range(1, 7):
            backward(model, seed=batch)
            telemetry.step(values={"loss": 1.0} | ({"accuracy": batch / 10} if batch in {4, 6} else {}))
            optimizer.step()
    steps = open_run(tmp_path).steps()
    assert steps["loss"].tolist() == [1.0] * 6
    assert steps["accuracy"].isna().tolist() == [True, True, True, False, True, False]
    csv = pd.read_csv(tmp_path / "telemetry" / "steps.csv")
    assert csv.columns.tolist()[-1] == "accuracy"
    assert csv["accuracy"].tolist()[3] == 0.4
    parquet = pd.read_parquet(tmp_path / "telemetry" / "steps.parquet")
    assert parquet["accuracy"].tolist()[3] == 0.4
    assert telemetry.stats().failed == 0
    assert validate_run(tmp_path) == []


def test_a_gradient_left_over_from_a_batch_before_is_measured_once(tmp_path: Path) -> None:
    """No optimizer resets it, so that it would be recorded for ever as if it were new."""
    model, _ = tiny()
    optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.01)
    with collector(model, optimizer, tmp_path) as telemetry:
        backward(model, seed=1)
        telemetry.step()
        model.mlp_head.requires_grad_(requires_grad=False)
        for batch in (2, 3):
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            optimizer.step()
    norms = open_run(tmp_path).gradient_norms()
    assert norms["mlp_head"].isna().tolist() == [False, True, True]
    assert norms["overall"].tolist()[1:] == pytest.approx(norms["backbone_2"].tolist()[1:], rel=10)


def test_a_group_that_the_user_named_and_the_model_lost_is_null(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its column stays, and a warning names it."""
    model, optimizer = tiny()
    groups = {"head": model.mlp_head, "first": "backbone.0.*"}
    with collector(model, optimizer, tmp_path, groups=groups) as telemetry:
        train(telemetry, model, optimizer, range(1, 3))
        other = nn.Sequential(OrderedDict(backbone=model.backbone, scores=nn.Linear(8, 10)))
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        telemetry.rebind(model=other, optimizer=optimizer)
        train(telemetry, other, optimizer, range(3, 5))
    norms = open_run(tmp_path).gradient_norms()
    assert norms["head"].isna().tolist() == [False, False, True, True]
    assert norms["first"].notna().all()
    assert any("the column 'head' is null from now on" in message for message in caplog.messages)
    assert validate_run(tmp_path) == []


@pytest.mark.parametrize("given", ["module", "parameters", "generator", "parameter"])
def test_a_group_of_the_users_is_the_one_at_the_same_place_after_rebind(tmp_path: Path, given: str) -> None:
    """Whether it was given as a module or by its parameters."""
    model, optimizer = tiny()
    choices: dict[str, Any] = {
        "module": model.mlp_head,
        "parameters": [*model.mlp_head.parameters()],
        "generator": model.mlp_head.parameters(),
        "parameter": model.mlp_head[0].weight,
    }
    expected = []
    with collector(model, optimizer, tmp_path, groups={"head": choices[given]}) as telemetry:
        for batch in range(1, 5):
            if batch == 3:
                model.mlp_head = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 10))
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                telemetry.rebind(model=model, optimizer=optimizer)
            optimizer.zero_grad()
            backward(model, seed=batch)
            telemetry.step()
            weight = next(model.mlp_head.parameters()).grad
            assert weight is not None
            expected.append(float(weight.double().norm()) if given == "parameter" else norm(model.mlp_head))
            optimizer.step()
    assert open_run(tmp_path).gradient_norms()["head"].tolist() == pytest.approx(expected, rel=1e-5)
    assert validate_run(tmp_path) == []


def test_rebind_takes_other_groups(tmp_path: Path) -> None:
    """Of the model that is given with them; a wrong one raises, and changes nothing."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path, groups={"head": model.mlp_head}) as telemetry:
        train(telemetry, model, optimizer, range(1, 3))
        with pytest.raises(GroupsError, match="no parameter's name matches"):
            telemetry.rebind(model=model, groups={"head": "fc.*"})
        with pytest.raises(MisuseError, match="groups is a list"):
            telemetry.rebind(model=model, groups=["head"])  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(MisuseError, match="also with groups="):
            telemetry.rebind(optimizer=optimizer, groups={"head": "mlp_head.*"})
        telemetry.rebind(model=model, groups={"head": "mlp_head.*", "first": model.backbone[0]})
        train(telemetry, model, optimizer, range(3, 5))
    norms = open_run(tmp_path).gradient_norms()
    assert norms["head"].notna().all()
    assert norms["first"].isna().tolist() == [True, True, False, False]


def test_rebind_before_the_first_row_and_without_arguments(tmp_path: Path) -> None:
    """It replaces what the constructor was given; without arguments it is a mistake."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path) as telemetry:
        with pytest.raises(MisuseError, match="give model="):
            telemetry.rebind()
        other = TinyNet()
        optimizer = torch.optim.SGD(other.parameters(), lr=0.4)
        telemetry.rebind(model=other, optimizer=optimizer)
        train(telemetry, other, optimizer, range(1, 3))
    assert open_run(tmp_path).learning_rates()["lr_group_0"].tolist() == [0.4] * 2
    with pytest.raises(MisuseError, match="after close"):
        telemetry.rebind(optimizer=optimizer)


def test_a_gradscaler_with_another_optimizer_reports_no_skipped_steps(tmp_path: Path) -> None:
    """The steps that the old optimizer does not make are not skipped ones."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with collector(model, optimizer, tmp_path, grad_scaler=scaler) as telemetry:
        for batch in range(1, 13):
            if batch == 5:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.7)
            optimizer.zero_grad()
            backward(model, seed=batch, scaler=scaler)
            telemetry.step()
            scaler.step(optimizer)
            scaler.update()
    assert events(tmp_path, "skipped_step")["value"].sum() <= 1
    assert len(events(tmp_path, "optimizer_replaced")) == 1
