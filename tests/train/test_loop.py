"""What a run trains, records and prints."""

import csv
import math
import signal
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from ava_pipeline.config.load import load_config
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import AvaPipelineError, ConfigError, NonFiniteLossError
from ava_pipeline.evaluation.evaluate import evaluate, prediction_paths
from ava_pipeline.train.batch_step import BatchStep
from ava_pipeline.train.loop import StopRequested, StopSignals
from ava_pipeline.train.models import AvaModel
from ava_pipeline.validate.validate import validate_run
from tests.train.small_runs import BATCHES_PER_EPOCH, at_batch, run, send_signal


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the model at the end of a run."""
    found: dict[str, Tensor] = torch.load(folder / "run/checkpoints/last.pt", weights_only=True)["model"]
    return found


def same_weights(one: Path, other: Path) -> bool:
    """Whether they are equal bit for bit."""
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def steps(folder: Path) -> list[dict[str, str]]:
    """The rows of steps.csv."""
    with (folder / "run/telemetry/steps.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


def test_a_run_keeps_its_own_contract(finished: Path) -> None:
    """`ava-pipeline validate` finds nothing, not even a warning."""
    assert validate_run(finished / "run") == []


def test_a_run_holds_what_was_promised(finished: Path) -> None:
    """The resolved config can be loaded; the split and the excluded images are saved."""
    root = finished / "run"
    assert load_config(root / "config.yaml").train.epochs == 2
    assert len(pd.read_csv(root / "split.csv")) == 28
    assert list(pd.read_csv(root / "excluded_images.csv")) == ["image_id", "file", "reason"]
    assert len(list((root / "predictions").glob("val_epoch_*.parquet"))) == 2


def test_evaluate_finds_the_figures_of_metrics_csv(finished: Path) -> None:
    """Both compute them from the same distributions; only the order of the sums may differ."""
    with (finished / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, found in zip(rows, map(evaluate, prediction_paths(finished / "run")), strict=True):
        expected = found.metrics.to_json()
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-9)


def test_train_loss_is_the_mean_of_the_epochs_batches(finished: Path, tmp_path: Path) -> None:
    """Batches that only accumulate count too: with one batch a step all of them are in steps.csv."""
    run(tmp_path, "train.accumulate=1", "train.epochs=1")
    losses = [float(row["loss"]) for row in steps(tmp_path)]
    recorded = pd.read_csv(tmp_path / "run/metrics.csv")["train_loss"][0]
    assert len(losses) == BATCHES_PER_EPOCH
    assert recorded == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_telemetry_changes_no_weight(finished: Path, tmp_path: Path) -> None:
    """With telemetry, without it, and without predictions the weights have the same bits."""
    run(tmp_path, "telemetry.enabled=false", "save_val_predictions=false")
    assert same_weights(finished, tmp_path)
    assert not (tmp_path / "run/predictions").exists()


def test_images_read_by_workers_change_no_weight(finished: Path, tmp_path: Path) -> None:
    """Order and augmentation depend on the seed only, and a forked worker does not touch the telemetry."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads.
        run(tmp_path, "data.num_workers=2")
    assert same_weights(finished, tmp_path)
    assert validate_run(tmp_path / "run") == []


def test_another_seed_trains_another_model(finished: Path, tmp_path: Path) -> None:
    """Otherwise the tests above would compare nothing."""
    run(tmp_path, "seed=1")
    assert not same_weights(finished, tmp_path)


def test_every_accumulation_weighs_as_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of three batches, then a step of the two that remain of the epoch."""
    shares: list[float] = []
    backward = BatchStep.backward

    def noting(self: BatchStep, images: Tensor, votes: Tensor, *, share: float) -> Tensor:
        shares.append(share)
        return backward(self, images, votes, share=share)

    monkeypatch.setattr(BatchStep, "backward", noting)
    run(tmp_path, "train.epochs=1")
    assert shares == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)
    assert [row["batch_idx"] for row in steps(tmp_path)] == ["3", "5"]


def test_the_model_trains_in_train_mode_and_predicts_in_eval_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every epoch, not only in the first one."""
    modes: list[tuple[bool, bool]] = []
    forward = AvaModel.forward

    def noting(self: AvaModel, images: Tensor) -> Tensor:
        modes.append((self.training, torch.is_grad_enabled()))
        return forward(self, images)

    monkeypatch.setattr(AvaModel, "forward", noting)
    run(tmp_path)
    epoch = [(True, True)] * BATCHES_PER_EPOCH
    num_val = len(modes) // 2 - BATCHES_PER_EPOCH
    assert modes == [*epoch, *[(False, False)] * num_val] * 2


def test_a_validation_that_fails_leaves_the_model_in_train_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who catches the error can continue to train."""
    models: list[AvaModel] = []

    def failing(self: AvaModel, _images: Tensor) -> Tensor:
        models.append(self)
        raise ZeroDivisionError

    def in_eval_mode(model: AvaModel, images: Tensor) -> Tensor:
        return forward(model, images) if model.training else failing(model, images)

    forward = AvaModel.forward
    monkeypatch.setattr(AvaModel, "forward", in_eval_mode)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    assert [model.training for model in models] == [True]


def test_clipping_bounds_what_the_optimizer_sees_and_not_what_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telemetry measures the gradients before clipping."""
    norms: list[float] = []
    step = torch.optim.SGD.step

    def noting(self: torch.optim.SGD, closure: None = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    run(tmp_path, "train.epochs=1", "train.clip_norm=0.001")
    recorded = pd.read_csv(tmp_path / "run/telemetry/gradient_norms.csv")["overall"]
    assert max(norms) <= 0.001 * (1 + 1e-4)
    assert recorded.min() > 0.001


def test_bf16_trains_on_the_cpu(tmp_path: Path) -> None:
    """fp16 is refused before anything is written, with the setting to use instead."""
    outcome = run(tmp_path, "train.amp=bf16", "train.epochs=1")
    assert math.isfinite(outcome.results[0].train_loss)
    with pytest.raises(ConfigError, match="fp16 needs CUDA"):
        run(tmp_path, "train.amp=fp16", "output_dir=" + str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def spoil(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Make the loss of the n-th training batch nan."""
    count = [0]
    forward = AvaModel.forward

    def spoiling(self: AvaModel, images: Tensor) -> Tensor:
        count[0] += self.training
        return forward(self, images) * (math.nan if self.training and count[0] == batch else 1)

    monkeypatch.setattr(AvaModel, "forward", spoiling)


def test_a_loss_of_nan_stops_the_run_and_names_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is recorded, the earlier checkpoint stays, and the message says what to do."""
    spoil(monkeypatch, BATCHES_PER_EPOCH + 3)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, batch 3 is nan \(images \d+, .*last\.pt.*clip_norm"):
        run(tmp_path)
    assert steps(tmp_path)[-1]["loss"] == "nan"
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    assert len(pd.read_csv(tmp_path / "run/metrics.csv")) == 1


def test_a_loss_of_nan_may_be_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its gradients are dropped, the batch is reported, and the mean loss omits it."""
    spoil(monkeypatch, 2)
    outcome = run(tmp_path, "train.on_nonfinite_loss=continue")
    assert "epoch 0, batch 2 is nan" in caplog.text
    assert all(math.isfinite(result.train_loss) for result in outcome.results)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.batch_size=64", "batch of 64 is larger than the set"),
        ("data.sample=null", "cannot be read"),
        ("data.split={train: 0.99999, val: 0.00001}", "No images for val"),
        ("device=mps", "device is 'mps', which torch does not find on this machine; use one of: auto, cpu"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, override: str, sentence: str
) -> None:
    """The message is one sentence, and no partial run directory blocks the next try."""
    with pytest.raises(AvaPipelineError, match=sentence):
        run(tmp_path, override)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["file", "unwritable"])
def test_an_output_directory_that_cannot_be_used_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is a file, or lies below a file; this is reported before labels and images are read."""
    monkeypatch.setattr("ava_pipeline.train.job.prepare_data", lambda *_, **__: pytest.fail("looked at the data"))
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" if kind == "file" else tmp_path / "file" / "run"
    with pytest.raises(ConfigError, match=r"output_dir.*file"):
        run(tmp_path, f"output_dir={place}")


def test_signals_mean_what_they_meant_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run, finished or not, the program's own handler of Ctrl-C is back."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    at_batch(monkeypatch, 2, send_signal(signal.SIGINT))
    assert run(tmp_path).stopped_by == signal.SIGINT
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_stop_is_asked_for_and_not_brought() -> None:
    """Nothing happens until the loop checks for it."""
    with StopSignals() as stop:
        stop.check()
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(StopRequested) as asked:
            stop.check()
    assert asked.value.signum == signal.SIGUSR1


def test_the_manifest_calls_an_ended_run_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither failed nor finished."""
    at_batch(monkeypatch, 3, send_signal(signal.SIGTERM))
    run(tmp_path)
    assert '"interrupted"' in RunLayout(tmp_path / "run").manifest.read_text()


def test_only_listed_images_need_to_be_there(tmp_path: Path) -> None:
    """A user with a part of AVA lists its ids; other images do not count as missing, also after a resume."""
    run(tmp_path, "train.epochs=1")
    split = pd.read_csv(tmp_path / "run/split.csv")["image_id"]
    for name, image_ids in (("train", split[:16]), ("val", split[16:20])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in image_ids))
    for image_id in split[20:]:
        (tmp_path / f"data/images/{image_id}.jpg").unlink()
    lists = f"data.split={{train: {tmp_path}/train.txt, val: {tmp_path}/val.txt}}"
    for resume, epochs in ((False, 1), (True, 2)):
        options = (lists, "data.sample=null", f"output_dir={tmp_path}/listed", f"train.epochs={epochs}")
        assert run(tmp_path, *options, resume=resume).costs.num_batches == 16 // 4
    assert pd.read_csv(tmp_path / "listed/excluded_images.csv").empty
