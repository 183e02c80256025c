"""`TelemetryMixin` and a plain Accelerate loop, in the newest releases of transformers and Accelerate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ava_pipeline import TelemetryCollector, open_run, validate_run
from tests.collect.models import TinyNet
from tests.integrations.references import column, features, norm, same_weights

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'ava-pipeline[frameworks]'")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install 'ava-pipeline[frameworks]'")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from transformers import Trainer, TrainerCallback, TrainingArguments

from ava_pipeline.integrations.transformers import TelemetryMixin

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, on a machine without an accelerator

SAMPLES, BATCH = 20, 4
BATCHES = SAMPLES // BATCH  # of an epoch


class Images(Dataset[Any]):
    """Features and distributions, as a Trainer takes them."""

    def __init__(self) -> None:
        self.inputs, self.targets = features(SAMPLES)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.inputs[index], "labels": self.targets[index]}


class Model(nn.Module):
    """Returns its loss, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = TinyNet()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class MyTrainer(TelemetryMixin, Trainer):  # type: ignore[misc]  # not known without transformers
    """A trainer of the user's."""


class Norms(TrainerCallback):  # type: ignore[misc]  # as above
    """What a step of each batch should record: gradients as float64, when they are complete and not clipped."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def watch(self, model: nn.Module) -> None:
        """Keep the norm each time that the Trainer is about to clip."""
        clip = torch.nn.utils.clip_grad_norm_

        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Tensor:
            self.norms.append(norm(model.parameters()))
            return clip(*args, **kwargs)

        torch.nn.utils.clip_grad_norm_ = clip_grad_norm_


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> Norms:
    """Norms, whose watching ends with the test."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", torch.nn.utils.clip_grad_norm_)
    return Norms()


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """A short training on the CPU that prints nothing."""
    quiet: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 2,
        "max_grad_norm": 0.01,
        "learning_rate": 0.1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "seed": 1,
    }
    return TrainingArguments(**{**quiet, **options})


def trained(
    folder: Path, kind: Any = MyTrainer, *, model: Model | None = None, resume: Any = None, **options: Any
) -> Model:
    """Train with telemetry, unless `kind` is the plain Trainer; return the model."""
    model = model or Model()
    telemetry = {"telemetry": {"collect_every_n": 1}} if kind is not Trainer else {}
    own = {name: options.pop(name) for name in ("eval_dataset", "compute_metrics", "callbacks") if name in options}
    kind(model, arguments(folder, **options), train_dataset=Images(), **telemetry, **own).train(
        resume_from_checkpoint=resume
    )
    return model


def test_norms_are_those_before_clipping_and_weights_stay_the_same(norms: Norms, tmp_path: Path) -> None:
    """Within 1e-5 of float64, over two epochs, with the Trainer's own count of steps."""
    model, plain = Model(), trained(tmp_path / "plain", Trainer)
    norms.watch(model)
    trained(tmp_path / "run", model=model)
    assert min(norms.norms) > 0.01
    assert column(tmp_path / "run", "gradient_norms", "overall") == pytest.approx(norms.norms, rel=1e-5)
    assert column(tmp_path / "run", "gradient_norms", "epoch") == [0] * BATCHES + [1] * BATCHES
    assert column(tmp_path / "run", "steps", "global_step") == list(range(2 * BATCHES))
    assert same_weights(model, plain)
    assert validate_run(tmp_path / "run") == []
    assert open_run(tmp_path / "run").manifest.status == "finished"
    assert open_run(tmp_path / "run").events().empty


def test_accumulated_gradients(norms: Norms, tmp_path: Path) -> None:
    """A row for each step, and the loss of the whole step; an epoch ends with one of a single batch."""
    model, losses = Model(), list[float]()

    class Losses(MyTrainer):
        """Keeps what the Trainer adds up."""

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            """Keep the loss."""
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    plain = trained(tmp_path / "plain", Trainer, gradient_accumulation_steps=2)
    norms.watch(model)
    trained(tmp_path / "run", Losses, model=model, gradient_accumulation_steps=2)
    assert column(tmp_path / "run", "gradient_norms", "batch_idx") == [2, 4, 5, 7, 9, 10]
    assert column(tmp_path / "run", "gradient_norms", "overall") == pytest.approx(norms.norms, rel=1e-5)
    steps = [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 7), slice(7, 9), slice(9, 10)]
    assert column(tmp_path / "run", "steps", "loss") == pytest.approx([sum(losses[one]) for one in steps], rel=1e-6)
    assert column(tmp_path / "run", "steps", "global_step") == list(range(6))
    assert same_weights(model, plain)
    assert validate_run(tmp_path / "run") == []
    assert open_run(tmp_path / "run").events().empty


def test_a_training_from_a_checkpoint_goes_on_with_the_tables(tmp_path: Path) -> None:
    """In a new trainer, as after a crash, to the same weights; the later rows are set aside."""
    run = tmp_path / "run"
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    model = trained(run, **saving)
    before = column(run, "gradient_norms", "overall")
    again = trained(run, resume=str(run / "checkpoint-6"), **saving)
    assert column(run, "gradient_norms", "batch_idx") == list(range(1, 2 * BATCHES + 1))
    assert column(run, "gradient_norms", "epoch") == [0] * BATCHES + [1] * BATCHES
    assert column(run, "steps", "global_step") == list(range(2 * BATCHES))
    assert column(run, "gradient_norms", "overall") == pytest.approx(before, rel=1e-6)
    assert open_run(run).manifest.attempt.resumed_from == 6
    assert same_weights(model, again)
    assert validate_run(run) == []


def test_a_checkpoint_has_the_weights_that_the_next_row_is_compared_with(tmp_path: Path) -> None:
    """Beside the numbers of the state, which are JSON."""
    run = tmp_path / "run"

    class Deltas(MyTrainer):
        """Records weight_deltas."""

        def __init__(self, *args: Any, telemetry: dict[str, Any], **kwargs: Any) -> None:
            super().__init__(*args, telemetry={**telemetry, "track_weight_delta": True}, **kwargs)

    trained(run, Deltas, save_strategy="steps", save_steps=3)
    before = column(run, "weight_deltas", "overall")
    trained(run, Deltas, resume=str(run / "checkpoint-6"), save_strategy="steps", save_steps=3)
    assert column(run, "weight_deltas", "overall")[1:] == before[1:]


def test_a_training_from_the_last_checkpoint(tmp_path: Path) -> None:
    """`resume_from_checkpoint=True` finds it."""
    run = tmp_path / "run"
    trained(run, save_strategy="epoch")
    trained(run, resume=True, num_train_epochs=3)
    assert open_run(run).manifest.attempt.resumed_from == 2 * BATCHES
    assert column(run, "gradient_norms", "batch_idx") == list(range(1, 3 * BATCHES + 1))


def test_a_checkpoint_of_a_trainer_without_telemetry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its batches were not counted, and the log says so."""
    run = tmp_path / "run"
    trained(run, Trainer, save_strategy="epoch")
    trained(run, resume=True, num_train_epochs=3)
    assert column(run, "gradient_norms", "batch_idx") == list(range(1, BATCHES + 1))
    assert any("has no state of telemetry" in message for message in caplog.messages)


def test_only_the_process_that_saves_the_checkpoint_saves_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer calls `on_save` in every process, and two would write through the same file."""
    monkeypatch.setattr(TrainingArguments, "should_save", property(lambda _: False))
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda *_, **__: Path(tmp_path, "checkpoint-1").mkdir())
    trained(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    assert list((tmp_path / "checkpoint-1").iterdir()) == []


def test_a_disk_that_refuses_the_state_costs_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names the checkpoint and what that means for a resume."""

    class Blocking(TrainerCallback):  # type: ignore[misc]  # as above
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            Path(args.output_dir, f"checkpoint-{state.global_step + 1}", "telemetry.json.partial").mkdir(parents=True)

    run = tmp_path / "run"
    trained(run, callbacks=[Blocking()], save_strategy="steps", save_steps=1, max_steps=2)
    assert column(run, "gradient_norms", "batch_idx") == [1, 2]
    assert "checkpoint-2 has no state of telemetry" in caplog.text
    assert "count batches from 1 again" in caplog.text


def test_metrics_of_evaluations(tmp_path: Path) -> None:
    """At the end of an epoch without a batch, within one with it."""
    run = tmp_path / "run"
    trained(run, eval_dataset=Images(), eval_strategy="steps", eval_steps=3, compute_metrics=lambda _: {"score": 0.5})
    metrics = open_run(run).metrics()
    assert metrics["eval_score"].tolist() == [0.5] * len(metrics)
    places = list(zip(metrics["epoch"], metrics["batch_idx"].fillna(0), strict=True))
    assert places == [(0, 3), (1, 6), (1, 9), (1, 0)]  # the last one at the end of the training
    trained(tmp_path / "epochs", eval_dataset=Images(), eval_strategy="epoch")
    assert open_run(tmp_path / "epochs").metrics()["epoch"].tolist() == [0, 1]
    assert open_run(tmp_path / "epochs").metrics()["eval_loss"].notna().all()


class Broken(TrainerCallback):  # type: ignore[misc]  # as above
    """Raises at the fourth step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Raise."""
        if state.global_step == 3:
            raise self.error


@pytest.mark.parametrize(("error", "status"), [(ValueError("a bug"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_how_a_training_ended_is_in_the_manifest(error: BaseException, status: str, tmp_path: Path) -> None:
    """With every row so far, and the exception reaches the program."""
    run = tmp_path / "run"
    with pytest.raises(type(error)):
        trained(run, callbacks=[Broken(error)])
    manifest = open_run(run).manifest
    assert (manifest.status, manifest.attempt.error) == (status, type(error).__name__)
    assert column(run, "gradient_norms", "batch_idx") == [1, 2, 3]


def accelerated(run: Path | None, norms: list[float], **options: Any) -> nn.Module:
    """The recipe of docs/frameworks.md for Accelerate, on a TinyNet; without `run`, without telemetry."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(Images(), batch_size=BATCH)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    telemetry = run and TelemetryCollector(model, optimizer, run, collect_every_n=1, grad_scaler=accelerator.scaler)
    for epoch in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                if telemetry:
                    telemetry.step(epoch, accumulating=not accelerator.sync_gradients, values={"loss": loss})
                if accelerator.sync_gradients:
                    norms.append(norm(model.parameters()))
                    accelerator.clip_grad_norm_(model.parameters(), 0.01)
                optimizer.step()
                optimizer.zero_grad()
    if telemetry:
        telemetry.close()
    unwrapped: nn.Module = accelerator.unwrap_model(model)
    return unwrapped


def test_an_accelerate_loop(tmp_path: Path) -> None:
    """Prepared models and optimizers are seen through."""
    run, norms = tmp_path / "run", list[float]()
    model = accelerated(run, norms)
    assert column(run, "gradient_norms", "batch_idx") == [2, 4, 5, 7, 9, 10]
    assert column(run, "gradient_norms", "overall") == pytest.approx(norms, rel=1e-5)
    assert column(run, "learning_rates", "lr_group_0") == [0.1] * 6
    assert same_weights(model, accelerated(None, []))
    assert validate_run(run) == []
    assert open_run(run).events().empty
