"""Held-out samples: what is recorded of them, against evaluations of the tests' own, and that nothing is disturbed."""

import copy
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ava_pipeline import MisuseError, Run, TelemetryCollector, in_holdout, open_run, runs
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import TinyNet, backward, tiny

SIZE = 5
IDS = [f"img, {number}.jpg" for number in range(6)]


def batches(num: int = 6, batch_size: int = 4, classes: int = 10) -> list[dict[str, Any]]:
    """Seeded batches of features, labels and ids."""
    x = torch.randn(num, 6, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(num) % classes
    return [
        {"x": x[start : start + batch_size], "y": labels[start : start + batch_size], "id": IDS[start:num][:batch_size]}
        for start in range(0, num, batch_size)
    ]


def logits(model: nn.Module, batch: Any) -> Tensor:
    """The forward pass of a batch of the above."""
    outputs: Tensor = model(batch["x"])
    return outputs


ASK: dict[str, Any] = {"forward": logits, "labels": "y", "ids": "id"}
ON: dict[str, Any] = {"collect_every_n": 2, "track_holdout_logits": True, "holdout_size": SIZE}


def reference(model: nn.Module, batch_list: list[dict[str, Any]], num: int) -> np.ndarray[Any, Any]:
    """Logits of the first samples in eval mode, in float64, of a copy of the model."""
    alone = copy.deepcopy(model).double().eval()
    x = torch.cat([batch["x"] for batch in batch_list])[:num].double()
    with torch.no_grad():
        outputs: np.ndarray[Any, Any] = alone(x).numpy()
    return outputs


def train(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, num_batches: int, **settings: Any
) -> list[np.ndarray[Any, Any]]:
    """Train with a holdout of the batches above; return the reference of each row."""
    references = []
    with TelemetryCollector(model, optimizer, root, {**ON, **settings}) as telemetry:
        telemetry.set_holdout(batches(), **ASK)
        for batch in range(1, num_batches + 1):
            optimizer.zero_grad()
            backward(model, batch)
            expected = reference(model, batches(), SIZE)
            if telemetry.step():
                references.append(expected)
            optimizer.step()
    return references


def recorded(run: Run) -> list[int]:
    """The batches that have rows of the holdout."""
    return list(dict.fromkeys(run.arrow("holdout_predictions").to_pydict()["batch_idx"]))


def problems(root: Path) -> list[str]:
    """What `validate` finds."""
    return [str(one) for one in validate_run(root)]


@pytest.mark.parametrize("formats", [("csv",), ("parquet",), ("csv", "parquet")])
def test_rows_are_those_of_an_evaluation_in_eval_mode(tmp_path: Path, formats: tuple[str, ...]) -> None:
    """Every logit, prediction and verdict, sample by sample, in every format; the last batch is cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = np.concatenate(train(tmp_path, model, optimizer, 6, formats=formats))
    run = open_run(tmp_path)
    frame = run.arrow("holdout_predictions").to_pandas()
    names = ["batch_idx", "epoch", "image_id", "label", "prediction", *(f"logit_{k}" for k in range(10)), "correct"]
    assert list(frame) == names
    assert frame["batch_idx"].tolist() == [2] * SIZE + [4] * SIZE + [6] * SIZE
    assert frame["image_id"].tolist() == IDS[:SIZE] * 3
    np.testing.assert_allclose(frame[[f"logit_{k}" for k in range(10)]], expected, rtol=1e-5, atol=1e-6)
    assert frame["prediction"].tolist() == expected.argmax(axis=1).tolist()
    assert frame["label"].tolist() == list(range(SIZE)) * 3
    assert frame["correct"].tolist() == (expected.argmax(axis=1) == np.tile(range(SIZE), 3)).tolist()
    assert problems(tmp_path) == []
    assert run.manifest.holdout_ids == tuple((one,) for one in IDS[:SIZE])
    assert runs(tmp_path).table("holdout_predictions").to_table().num_rows == 3 * SIZE
    if "csv" in formats:
        csv = pd.read_csv(tmp_path / "telemetry/holdout_predictions.csv")
        pd.testing.assert_frame_equal(csv, frame, check_dtype=False, rtol=1e-6)
        assert csv["correct"].dtype == bool
        assert ",true\n" in (tmp_path / "telemetry/holdout_predictions.csv").read_text() or not csv["correct"].any()
    if "parquet" in formats:
        parquet = pd.read_parquet(tmp_path / "telemetry/holdout_predictions.parquet")
        pd.testing.assert_frame_equal(parquet, frame, check_dtype=False)


class Pairs(nn.Module):
    """Two logits of two images: how much the one is better than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """Logits (B, 2)."""
        outputs: Tensor = self.head(torch.cat((self.backbone(one), self.backbone(two)), dim=1))
        return outputs


def test_pairs_have_the_columns_of_the_older_collector(tmp_path: Path) -> None:
    """Two ids, two logits; here `holdout_size` counts samples, there it counted batches, and booleans were Python's."""
    older = "batch_idx,epoch,image1,image2,label,prediction,logit_0,logit_1,correct"
    torch.manual_seed(0)
    model = Pairs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(3, 6)
    batch = ((x, x.flip(0)), torch.tensor([0, 1, 0]), ["a.jpg", "b.jpg", "a.jpg"], ["b.jpg", "a.jpg", "c.jpg"])
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, track_holdout_logits=True) as telemetry:
        telemetry.set_holdout(
            [batch], forward=lambda model, batch: model(*batch[0]), labels=1, ids=(2, lambda batch: batch[3])
        )
        with torch.no_grad():
            expected = model(x, x.flip(0)).numpy()
        nn.functional.cross_entropy(model(*batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]  # as in torch
        telemetry.step()
    lines = (tmp_path / "telemetry/holdout_predictions.csv").read_text().splitlines()
    assert lines[0] == older
    prediction = int(expected[2].argmax())
    correct = "true" if prediction == 0 else "false"
    assert lines[3] == f"1,0,a.jpg,c.jpg,0,{prediction},{expected[2, 0]!s},{expected[2, 1]!s},{correct}"
    assert problems(tmp_path) == []


def votes() -> Tensor:
    """Votes of four images for the scores 1 to 10."""
    return torch.randint(0, 40, (4, 10), generator=torch.Generator().manual_seed(3))


def test_scores_are_means_of_distributions(tmp_path: Path) -> None:
    """Means in float64, ids as integers, and the shares; from tuples in a DataLoader."""
    model, optimizer = tiny()
    x = torch.randn(4, 6)
    loader = DataLoader(TensorDataset(torch.arange(100, 104), x, votes()), batch_size=3)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, track_holdout_logits=True) as telemetry:
        telemetry.set_holdout(
            loader, forward=lambda model, batch: model(batch[1]).softmax(dim=1), labels=2, ids=0, kind="scores"
        )
        with torch.no_grad():
            shares = copy.deepcopy(model).double()(x.double()).softmax(dim=1).numpy()
        backward(model)
        telemetry.step()
    frame = open_run(tmp_path).arrow("holdout_predictions").to_pandas()
    columns = ["batch_idx", "epoch", "image_id", "gt_mean", "pred_mean", *(f"pred_dist_{k}" for k in range(1, 11))]
    assert list(frame) == columns
    scores = np.arange(1, 11)
    given = votes().numpy().astype(np.float64)
    np.testing.assert_array_equal(frame["gt_mean"], given @ scores / given.sum(axis=1))
    np.testing.assert_allclose(frame["pred_mean"], shares @ scores, rtol=1e-6)
    np.testing.assert_allclose(frame[columns[5:]], shares, rtol=1e-5)
    assert frame["image_id"].tolist() == [100, 101, 102, 103]
    assert problems(tmp_path) == []


def test_scores_that_are_no_distributions_cost_their_rows(tmp_path: Path) -> None:
    """Logits are refused in words, as `val_predictions` refuses them; what is not finite is nan."""
    model, optimizer = tiny()
    batch = (torch.arange(4), torch.randn(4, 6), votes())
    factors = iter((1.0, float("nan")))

    def forward(model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch[1]) * next(factors)
        return outputs

    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, track_holdout_logits=True) as telemetry:
        telemetry.set_holdout([batch], forward=forward, labels=2, ids=0, kind="scores")
        for _ in range(2):
            backward(model)
            telemetry.step()
    run = open_run(tmp_path)
    frame = run.arrow("holdout_predictions").to_pandas()
    assert frame["batch_idx"].tolist() == [2] * 4
    assert frame["pred_mean"].isna().all()
    events = run.events().set_index("event")
    assert "Let forward return a softmax" in str(events.loc["failed_row", "message"])
    assert "4 of 4 predictions" in str(events.loc["non_finite", "message"])
    assert problems(tmp_path) == []


class Counting(nn.Module):
    """Counts its calls in three ways, also in eval mode, and draws random numbers of three kinds."""

    added: Tensor
    replaced: Tensor
    through_data: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("added", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("through_data", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The input and noise, scaled by the calls so far."""
        self.added += 1
        self.replaced = self.replaced + 1
        self.through_data.data.add_(1)
        noise = torch.randn_like(x) * random.random() * float(np.random.rand())  # noqa: NPY002, S311  # the global ones
        return x + 0.01 * noise * self.added


class Delicate(nn.Module):
    """Dropout, BatchNorm, one BatchNorm that the user froze, buffers that change, and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.frozen = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.counting, self.dropout, self.head = Counting(), nn.Dropout(0.5), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10)."""
        outputs: Tensor = self.head(self.dropout(self.counting(self.frozen(self.norm(self.one(x))))))
        return outputs


def trained(root: Path, *, is_on: bool, wrap: Any = None) -> tuple[dict[str, Tensor], list[Any]]:
    """The state after some batches, and the next random numbers."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global one
    model = Delicate()
    wrapped = model if wrap is None else wrap(model)
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(torch.randn(8, 6), torch.arange(8)), batch_size=4, shuffle=True)
    config = ON | {"collect_every_n": 1, "track_holdout_logits": is_on}
    with TelemetryCollector(wrapped, optimizer, root, config) as telemetry:
        telemetry.set_holdout(loader, forward=lambda model, batch: model(batch[0]), labels=1, ids=1)
        for _ in range(3):
            wrapped.train()
            model.frozen.eval()
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(wrapped(x), y).backward()  # type: ignore[no-untyped-call]  # as in torch
                gradients = [parameter.grad for parameter in model.parameters()]
                versions = {name: buffer._version for name, buffer in model.named_buffers()}
                buffers = dict(model.named_buffers())
                flags = [module.training for module in model.modules()]
                telemetry.step()
                assert all(a is b for a, b in zip(gradients, (one.grad for one in model.parameters()), strict=True))
                assert {name: buffer._version for name, buffer in model.named_buffers()} == versions
                assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
                assert [module.training for module in model.modules()] == flags
                optimizer.step()
    numbers = [torch.rand(()).item(), random.random(), float(np.random.rand())]  # noqa: NPY002, S311  # the global ones
    return {name: value.clone() for name, value in model.state_dict().items()}, numbers


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # while compiling
@pytest.mark.parametrize("wrapper", [None, "data-parallel", "compiled"])
def test_the_training_is_the_same_to_the_bit(tmp_path: Path, wrapper: str | None) -> None:
    """Weights, buffers, gradients, flags and random numbers, with the holdout on and off."""
    wrap = {
        None: None,
        "data-parallel": nn.DataParallel,
        "compiled": lambda model: torch.compile(model, backend="eager"),
    }
    on, numbers_on = trained(tmp_path / "on", is_on=True, wrap=wrap[wrapper])
    off, numbers_off = trained(tmp_path / "off", is_on=False, wrap=wrap[wrapper])
    assert all(torch.equal(on[name], off[name]) for name in off)
    assert numbers_on == numbers_off
    assert on["norm.num_batches_tracked"] == 6
    assert on["frozen.num_batches_tracked"] == 0
    assert open_run(tmp_path / "on").arrow("holdout_predictions").num_rows == 6 * SIZE
    assert problems(tmp_path / "on") == []


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_ddp_model_is_evaluated_without_a_collective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`forward` gets the model inside, so that DDP does not broadcast buffers or wait for other processes."""
    model = Delicate()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = []

    def forward(inner: nn.Module, batch: Any) -> Tensor:
        given.append(inner)
        return logits(inner, batch)

    with TelemetryCollector(parallel, optimizer, tmp_path / "run", {**ON, "collect_every_n": 1}) as telemetry:
        telemetry.set_holdout(batches(), **{**ASK, "forward": forward})
        backward(parallel)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("DDP was called for the holdout")

        monkeypatch.setattr(parallel, "_pre_forward", refuse)
        telemetry.step()
    assert given == [model, model]
    assert open_run(tmp_path / "run").arrow("holdout_predictions").num_rows == SIZE


def test_a_compiled_model_is_not_compiled_again(tmp_path: Path) -> None:
    """Nor is one that compiled itself; the evaluation runs it as it is written."""
    model, optimizer = tiny()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    model.compile(backend=backend)
    with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
        telemetry.set_holdout(batches(), **ASK)
        for batch in range(3):
            backward(model, batch)
            telemetry.step()
    assert len(graphs) == 1
    assert open_run(tmp_path).arrow("holdout_predictions").num_rows == 3 * SIZE


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # while compiling
@pytest.mark.parametrize("has_graph_breaks", [True, False])
def test_a_compiled_step_is_not_compiled_again(tmp_path: Path, has_graph_breaks: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Whether the collector is called in it, or after it."""
    torch._dynamo.reset()
    model, optimizer = tiny()
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry,
    ):
        telemetry.set_holdout(batches(), **ASK)

        @partial(torch.compile, backend="eager", fullgraph=not has_graph_breaks)
        def loss(x: Tensor) -> Tensor:
            loss: Tensor = model(x).logsumexp(dim=1).mean()
            if has_graph_breaks:
                loss.backward()  # type: ignore[no-untyped-call]  # as in torch
                telemetry.step()
            return loss

        for _ in range(4):
            optimizer.zero_grad()
            value = loss(torch.ones(3, 6))
            if not has_graph_breaks:
                value.backward()
                telemetry.step()
            optimizer.step()
    assert open_run(tmp_path).arrow("holdout_predictions").num_rows == 4 * SIZE
    assert problems(tmp_path) == []


@pytest.mark.parametrize("given", ["auto", torch.bfloat16, None])
def test_autocast_is_that_of_training(tmp_path: Path, given: Any) -> None:
    """As the next forward pass of training has it, after which its hook is gone, or as the user says."""
    model, optimizer = tiny()
    hooks = nn.modules.module._global_forward_pre_hooks
    num_before = len(hooks)
    with torch.no_grad():
        plain = model(batches()[0]["x"])
        with torch.autocast("cpu", torch.bfloat16):
            low = model(batches()[0]["x"]).float()
    assert not torch.equal(plain, low)
    with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
        telemetry.set_holdout(batches(), **ASK, autocast=given)
        with torch.no_grad():
            model(torch.zeros(1, 6))  # a validation, whose autocast may be another one
        with torch.autocast("cpu", torch.bfloat16):
            backward(model)
            assert len(hooks) == num_before
            telemetry.step()  # under autocast, which does not decide
    frame = open_run(tmp_path).arrow("holdout_predictions").to_pandas()
    expected = plain if given is None else low
    assert np.array_equal(frame[[f"logit_{k}" for k in range(10)]].to_numpy()[:4], expected.numpy())


def test_a_hook_that_never_sees_the_training_is_removed(tmp_path: Path) -> None:
    """Which forward passes of a part of the model alone do not show; and when the collector is gone."""
    model, optimizer = tiny()
    hooks = nn.modules.module._global_forward_pre_hooks
    num_before = len(hooks)
    with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
        telemetry.set_holdout(batches(), **ASK)
        assert len(hooks) == num_before + 1
        for _ in range(2):
            model.backbone(torch.zeros(1, 6)).sum().backward()
            telemetry.step()
        assert len(hooks) == num_before


def test_hooks_on_the_model_know_the_holdout(tmp_path: Path) -> None:
    """A hook that counts what the training does asks `in_holdout`."""
    model, optimizer = tiny()
    calls = []
    model.backbone.register_forward_pre_hook(lambda *_: calls.append(in_holdout()))
    with TelemetryCollector(model, optimizer, tmp_path, ON) as telemetry:
        telemetry.set_holdout(batches(), **ASK)
        for _ in range(2):
            backward(model)
            telemetry.step()
    assert calls == [False, False, True, True]
    assert not in_holdout()


def test_a_batch_that_forward_changes_is_whole_at_the_next_row(tmp_path: Path) -> None:
    """Each evaluation gets a copy of its own."""
    model, optimizer = tiny()

    def forward(model: nn.Module, batch: Any) -> Tensor:
        batch.pop("y")
        outputs: Tensor = model(batch["x"].mul_(2))
        return outputs

    with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
        telemetry.set_holdout(batches(), **{**ASK, "forward": forward})
        for _ in range(2):
            backward(model)
            telemetry.step()
    frame = open_run(tmp_path).arrow("holdout_predictions").to_pandas()
    assert frame["logit_0"][:SIZE].tolist() == frame["logit_0"][SIZE:].tolist()


def test_logits_that_are_nan_have_no_prediction(tmp_path: Path) -> None:
    """They are recorded as measured, and the verdict is null; one event names them."""
    model, optimizer = tiny()

    def forward(model: nn.Module, batch: Any) -> Tensor:
        outputs = logits(model, batch)
        outputs[0, 3] = float("nan")
        return outputs

    with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
        telemetry.set_holdout(batches(), **{**ASK, "forward": forward})
        backward(model)
        telemetry.step()
    run = open_run(tmp_path)
    table = run.arrow("holdout_predictions")
    assert [one is None for one in table["prediction"].to_pylist()] == [True, False, False, False, True]
    assert [one is None for one in table["correct"].to_pylist()] == [True, False, False, False, True]
    assert np.isnan(table.to_pydict()["logit_3"][0])
    assert table["logit_3"].null_count == 0
    (event,) = run.events().query("event == 'non_finite'")["message"]
    assert event == "logit_3: not finite in 2 of 5 predictions for held-out samples."
    assert problems(tmp_path) == []


class TestFailures:
    """What costs rows of this table alone."""

    def test_an_evaluation_that_raises_costs_its_row(self, tmp_path: Path) -> None:
        """The other tables have theirs, and the model is as it was."""
        model, optimizer = tiny()
        model.mlp_head.eval()
        fails = iter((True, False, False, True, False, False))

        def forward(model: nn.Module, batch: Any) -> Tensor:
            if next(fails):
                raise RuntimeError("out of memory")
            return logits(model, batch)

        with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
            telemetry.set_holdout(batches(), **{**ASK, "forward": forward})
            for _ in range(4):
                backward(model)
                assert telemetry.step()
                assert model.backbone.training
                assert not model.mlp_head.training
                assert torch.is_grad_enabled()
                assert not in_holdout()
        run = open_run(tmp_path)
        assert recorded(run) == [2, 4]
        assert len(run.steps()) == 4
        messages = run.events()["message"].tolist()
        assert sum("out of memory" in message for message in messages) == 2
        assert problems(tmp_path) == []

    def test_under_raise_it_reaches_the_loop(self, tmp_path: Path) -> None:
        """As every failure does there."""
        model, optimizer = tiny()
        settings = {**ON, "collect_every_n": 1, "on_error": "raise"}
        with TelemetryCollector(model, optimizer, tmp_path, settings) as telemetry:
            telemetry.set_holdout(batches(), **{**ASK, "forward": lambda *_: 1 / 0})
            backward(model)
            with pytest.raises(ZeroDivisionError):
                telemetry.step()

    def test_labels_outside_the_classes_are_refused_by_name(self, tmp_path: Path) -> None:
        """At the first evaluation, when the number of classes is known; once."""
        model, optimizer = tiny()
        given = batches()
        given[0]["y"] = torch.tensor([1, 2, 10, 3])
        with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
            telemetry.set_holdout(given, **ASK)
            for _ in range(2):
                backward(model)
                telemetry.step()
        run = open_run(tmp_path)
        (message,) = run.events()["message"]
        assert "the model's 10 classes, 0 to 9: 10 of 'img, 2.jpg'" in message
        assert "holdout_predictions" not in run.manifest.tables
        assert problems(tmp_path) == []

    @pytest.mark.parametrize(
        ("forward", "words"),
        [
            (lambda _, batch: batch["x"][:, 0], "got shape (4,)"),
            (lambda _, batch: batch["x"][:2], "of shape (4, 6), got shape (2, 6)"),
            (lambda _, batch: batch["x"][:, :1], "got shape (4, 1)"),
            (lambda _, batch: batch["y"], "expected a tensor of logits of two or more classes, got torch.int64"),
            (lambda *_: None, "got NoneType"),
        ],
    )
    def test_what_forward_must_return_is_said_in_words(self, tmp_path: Path, forward: Any, words: str) -> None:
        """In the event of the row."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
            telemetry.set_holdout(batches(), **{**ASK, "forward": forward})
            backward(model)
            telemetry.step()
        (message,) = open_run(tmp_path).events()["message"]
        assert words in message


class TestMoments:
    """When the holdout begins, and how it continues."""

    def test_without_set_holdout_one_warning_says_so(self, tmp_path: Path) -> None:
        """At the first row; the run is as one without the switch."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, ON) as telemetry:
            for _ in range(6):
                backward(model)
                telemetry.step()
        run = open_run(tmp_path)
        (event,) = run.events().to_dict("records")
        assert (event["batch_idx"], event["event"]) == (2, "misuse")
        assert "Call telemetry.set_holdout(" in event["message"]
        assert "holdout_predictions" not in run.manifest.tables
        assert problems(tmp_path) == []

    def test_set_later_it_begins_with_the_next_row(self, tmp_path: Path) -> None:
        """In the same attempt; the older rows of other tables stay."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, ON) as telemetry:
            for batch in range(1, 11):
                if batch == 6:
                    telemetry.set_holdout(batches(), **ASK)
                backward(model)
                telemetry.step(accumulating=batch == 6)
        run = open_run(tmp_path)
        assert recorded(run) == [7, 8, 10]
        assert len(run.manifest.attempts) == 1
        assert run.manifest.attempt.first_batches == {"holdout_predictions": 7}
        assert problems(tmp_path) == []

    def resume(
        self, root: Path, batch_list: list[dict[str, Any]], *, at: int = 1, state: Any = None
    ) -> dict[str, float]:
        """Four more batches, with the holdout set before the one numbered `at`."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, root, ON) as telemetry:
            if state is not None:
                telemetry.load_state_dict(state)
            for batch in range(1, 5):
                if batch == at:
                    telemetry.set_holdout(batch_list, **ASK)
                backward(model)
                telemetry.step()
            return dict(telemetry.state_dict())

    @pytest.mark.parametrize("at", [1, 3])
    def test_a_resume_with_the_same_samples_continues(self, tmp_path: Path, at: int) -> None:
        """Without an event, and with the rows of both, also if it is set late."""
        state = self.resume(tmp_path, batches())
        self.resume(tmp_path, batches(), state=state, at=at)
        run = open_run(tmp_path)
        expected = [2, 4, 6, 8] if at == 1 else [2, 4, 8]
        assert recorded(run) == expected
        assert set(run.events()["event"]) <= {"misuse"}  # that it was not set at first
        assert problems(tmp_path) == []

    def test_a_resume_with_other_samples_is_said(self, tmp_path: Path) -> None:
        """Once, with how many of them."""
        state = self.resume(tmp_path, batches())
        others = batches()
        others[0]["id"] = ["new.jpg", *IDS[1:4]]
        self.resume(tmp_path, others, state=state)
        run = open_run(tmp_path)
        (event,) = run.events().to_dict("records")
        assert (event["event"], event["severity"], event["batch_idx_end"]) == ("changed_holdout", "warning", 5)
        assert "1 of 5 are new, and 1 of 5 are gone" in event["message"]
        assert run.manifest.holdout_ids[0] == ("new.jpg",)
        assert recorded(run) == [2, 4, 6, 8]
        assert problems(tmp_path) == []

    def test_a_resume_with_other_columns_begins_a_new_table(self, tmp_path: Path) -> None:
        """Integers instead of texts as ids; the older rows move to superseded/, and every row is counted."""
        state = self.resume(tmp_path, batches())
        others = batches()
        others[0]["id"], others[1]["id"] = [1, 2, 3, 4], [5, 6]
        state = self.resume(tmp_path, others, state=state, at=3)
        run = open_run(tmp_path)
        assert recorded(run) == [8]
        assert (tmp_path / "telemetry/superseded/attempt-2/holdout_predictions.csv").exists()
        assert problems(tmp_path) == []

    def test_several_optimizers_in_a_batch_evaluate_it_once(self, tmp_path: Path) -> None:
        """With the weights that the batch began with."""
        model, _ = tiny()
        optimizers = {
            "one": torch.optim.SGD(model.backbone.parameters(), lr=0.1),
            "two": torch.optim.SGD(model.mlp_head.parameters(), lr=0.1),
        }
        calls = []

        def forward(model: nn.Module, batch: Any) -> Tensor:
            calls.append(1)
            return logits(model, batch)

        expected = []
        with TelemetryCollector(model, optimizers, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
            telemetry.set_holdout(batches(), **{**ASK, "forward": forward})
            for batch in range(2):
                expected.append(reference(model, batches(), SIZE))
                for name, optimizer in optimizers.items():
                    optimizer.zero_grad()
                    backward(model, batch)
                    telemetry.step(optimizer=name)
                    optimizer.step()
        frame = open_run(tmp_path).arrow("holdout_predictions").to_pandas()
        np.testing.assert_allclose(
            frame[[f"logit_{k}" for k in range(10)]], np.concatenate(expected), rtol=1e-5, atol=1e-6
        )
        assert len(calls) == 4

    def test_another_model_is_evaluated_after_rebind(self, tmp_path: Path) -> None:
        """From the next row on."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
            telemetry.set_holdout(batches(), **ASK)
            backward(model)
            telemetry.step()
            other, its_optimizer = tiny(seed=5)
            telemetry.rebind(model=other, optimizer=its_optimizer)
            backward(other)
            telemetry.step()
        frame = open_run(tmp_path).arrow("holdout_predictions").to_pandas()
        expected = [reference(one, batches(), SIZE) for one in (model, other)]
        np.testing.assert_allclose(
            frame[[f"logit_{k}" for k in range(10)]], np.concatenate(expected), rtol=1e-5, atol=1e-6
        )


class TestMisuse:
    """Calls that cannot be right raise at once."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"forward": None}, "forward is None: give a function"),
            ({"kind": "pairs"}, "give 'classes' or 'scores'"),
            ({"labels": None}, "labels is None: give a name, a position or a function"),
            ({"labels": "z"}, "labels is 'z', which a batch does not have: it is a dict of 'x', 'y', 'id'"),
            ({"labels": "x"}, r"labels of kind='classes' are torch.float32 of shape \(4, 6\): give whole numbers"),
            ({"labels": lambda batch: -batch["y"]}, "the label of 'img, 1.jpg' is -1: give classes from 0"),
            ({"ids": ("id", "id", "id")}, "give one key, or the two of a pair"),
            ({"ids": lambda batch: batch["id"][1:]}, "4 labels and 3 ids"),
            ({"ids": lambda batch: [0] * len(batch["id"])}, "the sample 0 comes twice"),
            ({"ids": lambda batch: [f"{one}\n" for one in batch["id"]]}, "give ids on one line"),
            ({"ids": lambda batch: ["", *batch["id"][1:]]}, "the id '' cannot be stored"),
            ({"ids": lambda batch: batch["x"][:, 0]}, "give 64-bit integers or strings"),
            ({"kind": "scores"}, r"give votes or shares, \(samples, 10\)"),
            ({"autocast": "bf16"}, "autocast is 'bf16': give 'auto', a dtype"),
            ({"autocast": torch.int64}, "give 'auto', a dtype"),
            ({"batches": {"x": 1}}, "batches is a dict: give a DataLoader"),
            ({"batches": []}, "the batches have no samples"),
        ],
    )
    def test_wrong_arguments(self, tmp_path: Path, change: dict[str, Any], words: str) -> None:
        """In words, and a right call can follow."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, {**ON, "collect_every_n": 1}) as telemetry:
            with pytest.raises(MisuseError, match=words):
                telemetry.set_holdout(**{"batches": batches(), **ASK, **change})
            telemetry.set_holdout(batches(), **ASK)

    def test_twice_and_after_close(self, tmp_path: Path) -> None:
        """Each with its remedy."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, ON) as telemetry:
            telemetry.set_holdout(batches(), **ASK)
            with pytest.raises(MisuseError, match="called twice"):
                telemetry.set_holdout(batches(), **ASK)
        with pytest.raises(MisuseError, match="after close"):
            telemetry.set_holdout(batches(), **ASK)

    def test_where_nothing_is_recorded_no_batch_is_read(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Disabled, on another rank, or with the switch off, which one line says."""

        def never() -> Iterator[object]:
            yield pytest.fail("a batch was read")

        caplog.set_level("INFO")
        model, optimizer = tiny()
        TelemetryCollector(model, optimizer, tmp_path, ON, enabled=False).set_holdout(never(), **ASK)
        assert "track_holdout_logits" not in caplog.text
        TelemetryCollector(model, optimizer, tmp_path, track_holdout_logits=False).set_holdout(never(), **ASK)
        assert caplog.text.count("keeps nothing, because track_holdout_logits is off") == 1
        monkeypatch.setenv("RANK", "1")
        TelemetryCollector(model, optimizer, tmp_path, ON).set_holdout(never(), **ASK)


def test_a_loader_gives_the_same_batches_afterwards(tmp_path: Path) -> None:
    """Its own generator, and torch's, are where they were."""
    own = torch.Generator().manual_seed(4)
    data = TensorDataset(torch.randn(8, 6), torch.arange(8))
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=own)
    model, optimizer = tiny()
    states = torch.get_rng_state(), own.get_state()
    with TelemetryCollector(model, optimizer, tmp_path, ON) as telemetry:
        telemetry.set_holdout(loader, forward=lambda model, batch: model(batch[0]), labels=1, ids=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(own.get_state(), states[1])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by torch; users still do
def test_a_model_can_be_saved_and_copied_while_autocast_is_looked_for(tmp_path: Path) -> None:
    """Nothing is put on the model."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, ON) as telemetry:
        telemetry.set_holdout(batches(), **ASK)
        torch.save(model, tmp_path / "model.pt")
        copied = copy.deepcopy(model)
        scripted = torch.jit.script(model)
    assert isinstance(torch.load(tmp_path / "model.pt", weights_only=False), TinyNet)
    x = torch.ones(1, 6)
    assert torch.equal(copied(x), scripted(x))
