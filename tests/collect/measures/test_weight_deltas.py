"""weight_deltas against float64: since the row before, over all that comes between two rows."""

import logging
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ava_pipeline import MisuseError, TelemetryCollector, open_run, validate_run
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.collect.weight_pass import WeightNumbers, WeightPass
from tests.collect.measures.test_weight_norms import mixed_resnet18
from tests.collect.models import TinyNet, ava_resnet18, tiny
from tests.collect.recorded import warnings_of
from tests.collect.test_several_optimizers import Gan
from tests.collect.weights import collector, deltas, table, train, update, weights_of

TABLES = ("weight_norms", "weight_deltas")


def test_differences_of_every_kind_of_parameter_equal_float64(tmp_path: Path) -> None:
    """Null in the first row; of a frozen group 0; the squares of parts add up as they do in the older collector's."""
    model = mixed_resnet18()
    with collector(model, tmp_path, collect_every_n=3) as telemetry:
        rows = train(telemetry, model, range(1, 10))
    first, *written = table(tmp_path, "weight_deltas")
    assert {value for key, value in first.items() if key not in {"batch_idx", "epoch"}} == {None}
    for row, weights, before in zip(written, rows[1:], rows[:-1], strict=True):
        assert row["num_batches"] == 3
        assert row["backbone_layer4"] == 0
        for column, expected in deltas(model, weights, before).items():
            assert row[column] == pytest.approx(expected, rel=1e-5), column
    assert validate_run(tmp_path) == []


@pytest.mark.parametrize("change", [3e-7, -1e-3, 2.0])
def test_differences_far_smaller_than_the_weights_keep_their_digits(tmp_path: Path, change: float) -> None:
    """All alike, as in the first steps of Adam, and in tensors of several lengths."""
    torch.manual_seed(0)
    model = nn.ParameterList([torch.randn(size) + 3 for size in (5, 16_384, 16_385, 1_000_000)])
    with collector(model, tmp_path) as telemetry:
        telemetry.step()
        before = weights_of(model)
        with torch.no_grad():
            for parameter in model:
                parameter.add_(change)
        after = weights_of(model)
        telemetry.step()
    expected = deltas(model, after, before)["overall"]
    assert table(tmp_path, "weight_deltas")[1]["overall"] == pytest.approx(expected, rel=1e-5)


def test_several_optimizers_in_a_batch_find_the_weights_at_its_first_call(tmp_path: Path) -> None:
    """The second optimizer steps after the first one has changed its weights."""
    torch.manual_seed(0)
    model = Gan()
    optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in model.named_children()}
    rows = []
    with TelemetryCollector(model, optimizers, tmp_path, collect_every_n=1, track_weight_delta=True) as telemetry:
        for batch in range(1, 4):
            rows.append(weights_of(model))
            for name in optimizers:
                telemetry.step(optimizer=name)
                update(model, batch)
    expected = [deltas(model, after, before)["overall"] for before, after in pairwise(rows)]
    written = table(tmp_path, "weight_deltas")
    assert [row["overall"] for row in written] == [None, *(pytest.approx(one, rel=1e-5) for one in expected)]
    assert [row["num_batches"] for row in written] == [None, 1, 1]


def resumed(root: Path, every: int, stops: list[int], num_batches: int = 12) -> list[list[dict[str, Any]]]:
    """Train with a checkpoint of everything after each of these batches; return the rows of both tables."""
    torch.manual_seed(0)
    root.mkdir()
    weights, state = TinyNet().state_dict(), None
    for begin, end in zip([0, *stops], [*stops, num_batches], strict=True):
        model = TinyNet()
        model.load_state_dict(weights)
        with collector(model, root, collect_every_n=every) as telemetry:
            if state is not None:
                telemetry.load_state_dict(state)
            train(telemetry, model, range(begin + 1, end + 1))
            torch.save({"model": model.state_dict(), "telemetry": telemetry.state_dict()}, root / "checkpoint.pt")
            train(telemetry, model, range(100, 100 + every))  # lost: the process dies after its checkpoint
        saved = torch.load(root / "checkpoint.pt", weights_only=True)
        weights, state = saved["model"], saved["telemetry"]
    return [[row for row in table(root, name) if row["batch_idx"] <= num_batches] for name in TABLES]


@settings(max_examples=12, deadline=None)
@given(every=st.integers(1, 5), stops=st.lists(st.integers(1, 11), min_size=1, max_size=2, unique=True).map(sorted))
def test_a_run_resumed_at_any_batch_writes_the_rows_of_one_that_never_stopped(every: int, stops: list[int]) -> None:
    """To the last bit, whatever lies between the checkpoints: rows, one row or none."""
    with tempfile.TemporaryDirectory() as folder:
        whole = resumed(Path(folder, "whole"), every, [])
        assert resumed(Path(folder, "resumed"), every, stops) == whole


def test_without_a_reference_the_first_row_after_a_resume_is_null(tmp_path: Path) -> None:
    """As from a checkpoint that was saved while the switch was off."""
    model, _ = tiny()
    with collector(model, tmp_path, track_weight_delta=False) as telemetry:
        train(telemetry, model, [1, 2])
        state = telemetry.state_dict()
        assert set(state) == {"batch_idx", "epoch", "global_step"} or set(state) == {"batch_idx", "epoch"}
    with collector(model, tmp_path) as telemetry:
        telemetry.load_state_dict(state)
        train(telemetry, model, [3, 4])
    rows = table(tmp_path, "weight_deltas")
    assert [(row["batch_idx"], row["num_batches"]) for row in rows] == [(3, None), (4, 1)]
    assert rows[0]["overall"] is None
    assert rows[1]["overall"] is not None


def test_a_reference_that_does_not_fit_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The backbone is compared; the head has another shape than in the checkpoint, so its groups are null once."""
    model, _ = tiny()
    with collector(model, tmp_path) as telemetry:
        train(telemetry, model, [1])
        state = telemetry.state_dict()
    model.mlp_head[3] = nn.Linear(5, 7)
    groups = {"backbone": "backbone.*", "head": "mlp_head.*"}
    with collector(model, tmp_path, groups=groups) as telemetry:
        telemetry.load_state_dict(state)
        train(telemetry, model, [2, 3])
    assert len([text for text in warnings_of(caplog) if "does not fit 2 parameters, such as mlp_head.3" in text]) == 1
    second, third = table(tmp_path, "weight_deltas")[-2:]
    assert (second["overall"], second["head"], second["num_batches"]) == (None, None, 1)
    assert second["backbone"] is not None
    assert None not in {third[column] for column in ("overall", *groups)}


@pytest.mark.parametrize("reference", [3, {}, {"batch_idx": 1, "weights": {"a": 1}}, {"batch_idx": 5, "weights": {}}])
def test_a_state_that_is_none_is_refused(tmp_path: Path, reference: object) -> None:
    """Such as one that was edited: the sentence says which part it is."""
    with (
        collector(tiny()[0], tmp_path) as telemetry,
        pytest.raises(MisuseError, match=r"'weight_reference'.*give all that state_dict"),
    ):
        telemetry.load_state_dict({"batch_idx": 4, "epoch": 0, "weight_reference": reference})


def test_a_replaced_head_is_null_once_and_not_compared_with_the_old_one(tmp_path: Path) -> None:
    """After `rebind`, though shapes and names are the same; also if the run is resumed in between."""
    model, _ = tiny()
    groups = {"backbone": "backbone.*", "head": "mlp_head.*"}
    with collector(model, tmp_path, groups=groups) as telemetry:
        train(telemetry, model, [1, 2])
        model.mlp_head = TinyNet().mlp_head
        telemetry.rebind(model=model)
        state = telemetry.state_dict()
        train(telemetry, model, [3, 4])
    rows = table(tmp_path, "weight_deltas")
    assert [row["head"] is None for row in rows] == [True, False, True, False]
    assert [row["backbone"] is None for row in rows] == [True, False, False, False]
    assert [row["num_batches"] for row in rows] == [None, 1, 1, 1]
    assert all(name.startswith("backbone") for name in state["weight_reference"]["weights"])


@pytest.mark.parametrize("convert", [lambda model: model.half(), lambda model: model.double()], ids=["half", "double"])
def test_weights_of_another_type_have_no_reference(tmp_path: Path, convert: Callable[[nn.Module], object]) -> None:
    """The parameters are the same objects as before."""
    model, _ = tiny()
    with collector(model, tmp_path) as telemetry:
        train(telemetry, model, [1, 2])
        convert(model)
        train(telemetry, model, [3, 4])
    assert [row["overall"] is None for row in table(tmp_path, "weight_deltas")] == [True, False, True, False]


def test_another_order_in_memory_and_other_tensors_do_not_disturb(tmp_path: Path) -> None:
    """A model that is converted to channels_last, and parameters whose data are replaced, as `load_state_dict` may."""
    model = ava_resnet18()
    with collector(model, tmp_path) as telemetry:
        rows = train(telemetry, model, [1, 2])
        model.to(memory_format=torch.channels_last)
        rows += train(telemetry, model, [3])
        for parameter in model.parameters():
            parameter.data = parameter.data + 0.01
        rows += train(telemetry, model, [4])
    for row, after, before in zip(table(tmp_path, "weight_deltas")[1:], rows[1:], rows, strict=False):
        assert row["overall"] == pytest.approx(deltas(model, after, before)["overall"], rel=1e-5)


@pytest.mark.parametrize("num_calls", [0, 3])
def test_a_pass_that_fails_costs_both_tables_the_row_and_no_other_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_calls: int
) -> None:
    """Part of the reference may be new then, so nothing is compared with it: the row after is null."""
    model, _ = tiny()
    calls = iter(range(100))
    real = torch.linalg.vector_norm

    def failing(*args: Any, **options: Any) -> torch.Tensor:
        if next(calls) == num_calls:
            raise RuntimeError("out of memory")
        norm: torch.Tensor = real(*args, **options)
        return norm

    model.long = nn.Parameter(torch.randn(2_000_000))
    with collector(model, tmp_path, on_error="warn") as telemetry:
        train(telemetry, model, [1])
        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, "vector_norm", failing)
            train(telemetry, model, [2])
        train(telemetry, model, [3, 4])
    for name in TABLES:
        assert [row["batch_idx"] for row in table(tmp_path, name)] == [1, 3, 4]
    assert [row["batch_idx"] for row in table(tmp_path, "gradient_norms")] == [1, 2, 3, 4]
    assert [row["num_batches"] for row in table(tmp_path, "weight_deltas")] == [None, None, 1]
    events = open_run(tmp_path).events()
    failed = events[events["event"] == "failed_row"]
    assert failed["batch_idx"].tolist() == [2, 2]
    assert failed["message"].str.contains("out of memory").all()


@pytest.mark.parametrize("column", TABLES)
def test_each_table_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    """What fails in the background thread behind the pass costs one table."""
    measure = f"ava_pipeline.collect.measures.{column}.known_norms"
    monkeypatch.setattr(measure, lambda *_: 1 / 0)
    model, _ = tiny()
    with collector(model, tmp_path, on_error="warn") as telemetry:
        train(telemetry, model, [1, 2])
    run = open_run(tmp_path)
    assert [len(run.table(name)) for name in TABLES] == [0 if name == column else 2 for name in TABLES]


def test_the_pass_is_made_once_per_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tables read it."""
    made = []
    real = WeightPass._make

    def make(weights: WeightPass, targets: TrainingTargets, batch_idx: int) -> WeightNumbers:
        made.append(batch_idx)
        return real(weights, targets, batch_idx)

    monkeypatch.setattr(WeightPass, "_make", make)
    model, _ = tiny()
    with collector(model, tmp_path, collect_every_n=2) as telemetry:
        train(telemetry, model, range(1, 7))
    assert made == [2, 4, 6]


def test_training_is_bit_identical_with_the_switch_on(tmp_path: Path) -> None:
    """Weights and gradients, of a model with dropout and BatchNorm."""
    found = []
    for is_on in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        root = tmp_path / str(is_on)
        with TelemetryCollector(model, optimizer, root, collect_every_n=1, track_weight_delta=is_on) as telemetry:
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.randn(4, 6)).square().mean().backward()
                telemetry.step()
                optimizer.step()
                telemetry.state_dict()
        found.append([*model.state_dict().values(), *(one.grad for one in model.parameters())])
    assert all(map(torch.equal, *found))


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """After the first row, no row takes another tensor, and there is one copy of the weights."""
    model = ava_resnet18()
    size = sum(parameter.nbytes for parameter in model.parameters())
    with collector(model, tmp_path) as telemetry:
        train(telemetry, model, [1])
        references = [*telemetry._recorder.measuring.weights._reference.values()]
        places = [one.data_ptr() for one in references]
        train(telemetry, model, range(2, 8))
        assert [one.data_ptr() for one in telemetry._recorder.measuring.weights._reference.values()] == places
    assert sum(one.nbytes for one in references) == size
    assert open_run(tmp_path).manifest.attempt.weight_reference_bytes == size


def test_the_size_of_the_reference_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the unit that people compare with the memory of their card."""
    model, _ = tiny()
    with caplog.at_level(logging.INFO), collector(model, tmp_path) as telemetry:
        train(telemetry, model, range(1, 4))
    assert len([text for text in caplog.messages if text.startswith("weight_deltas: the reference takes ")]) == 1
