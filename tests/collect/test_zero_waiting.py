"""The training thread never waits for the device: shown on fake CUDA tensors, where nothing can be waited for.

A collector trains under `FakeTensorMode` with a model on a CUDA device that does not exist. `step` and clipping are the
real ones from end to end, but for the pinned memory and the event behind it, which only a device can make.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect import gradient_pass, recorder
from ava_pipeline.collect.call_checks import CallChecks
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.collect.holdout import Holdout
from ava_pipeline.collect.layer_pass import LayerPlan
from ava_pipeline.collect.measures import DEFAULT_MEASURES
from ava_pipeline.collect.measures.gradient_norms import GradientNorms
from ava_pipeline.collect.measures.layer_stats import LayerStats
from ava_pipeline.collect.measures.measure import Reading
from ava_pipeline.collect.measures.weight_deltas import WeightDeltas
from ava_pipeline.collect.measures.weight_norms import WeightNorms
from ava_pipeline.collect.predictions import EpochPredictions
from ava_pipeline.collect.samples import Samples
from ava_pipeline.collect.staging import Slot, Staging
from ava_pipeline.collect.stale_gradients import StaleGradients
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.collect.weight_pass import MAX_AT_ONCE, WeightPass
from tests.collect.models import TinyNet, backward, tiny
from tests.collect.no_waiting import FakeSlot, NoWaiting, WaitedError, no_waiting

HOURS_S = 1e4  # rows are read when the collector closes, so that no slot goes round with real numbers in it


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoWaiting]:
    """A CUDA device that does not exist, and slots that it copies to."""
    with no_waiting(monkeypatch) as mode:

        def new_slot(_: torch.device, num_numbers: int) -> Slot:
            slot = FakeSlot(num_numbers)
            mode.pinned.append(slot.buffer)
            return slot

        monkeypatch.setattr(recorder, "Staging", lambda: Staging(new_slot))
        monkeypatch.setattr(torch.cuda, "get_device_name", str)
        yield mode


def on_fake_cuda() -> tuple[TinyNet, torch.optim.Optimizer]:
    """A model on it, with gradients of every kind, and its optimizer, whose rate is on the device too."""
    with torch.device("cuda"):
        model = TinyNet()
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.empty_like(parameter)
        if index == 0:
            parameter.grad = torch.empty(parameter.shape[::-1], device="cuda").t()
    next(model.mlp_head.parameters()).grad = None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="cuda")
    return model, optimizer


def scaler_of(scale: Tensor) -> torch.amp.GradScaler:
    """A GradScaler as it is once it has scaled a loss; for "cuda" it would find no CUDA and be disabled."""
    scaler = torch.amp.GradScaler("cpu")
    scaler._scale, scaler._growth_tracker = scale, torch.zeros((), dtype=torch.int32, device=scale.device)
    return scaler


def train(folder: Path, scaling: str = "none") -> None:
    """Three batches with all on the device: loss, a value of half precision, scale, rate, gradients."""
    model, optimizer = on_fake_cuda()
    scaler = None if scaling == "none" else scaler_of(torch.empty((), device="cuda"))
    if scaler is not None and scaling == "unscaled":
        scaler.unscale_(optimizer)
    with TelemetryCollector(
        model,
        optimizer,
        folder,
        collect_every_n=1,
        grad_scaler=scaler,
        on_error="raise",
        flush_interval_s=HOURS_S,
        track_weight_delta=True,
        track_per_layer_stats=True,
    ) as telemetry:
        for _ in range(3):
            loss = model(torch.empty(4, 6, device="cuda")).logsumexp(dim=1).mean()
            telemetry.step(values={"loss": loss, "half": torch.empty(1, device="cuda", dtype=torch.float16)})
            telemetry.clip_grad_norm_(1.0)


@pytest.mark.parametrize(("scaling", "num_passes"), [("none", 1), ("unscaled", 1), ("scaled", 3)])
def test_a_collected_step_waits_for_nothing(
    fake_cuda: NoWaiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaling: str, num_passes: int
) -> None:
    """Every number of the rows comes by the one copy, where it reads 1; the clip shares the pass where it may."""
    torchs = Mock(wraps=nn.utils.clip_grad_norm_)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", torchs)
    train(tmp_path, scaling)
    run = open_run(tmp_path)
    present = sum(parameter.grad is not None for parameter in on_fake_cuda()[0].parameters())
    assert run.gradient_norms()["overall"].tolist() == pytest.approx([present**0.5] * 3)
    num_parameters = len([*on_fake_cuda()[0].parameters()])
    assert run.table("weight_norms")["overall"].tolist() == pytest.approx([num_parameters**0.5] * 3)
    assert run.table("weight_deltas")["overall"].tolist()[1:] == pytest.approx([num_parameters**0.5] * 2)
    assert run.learning_rates()["lr_group_0"].tolist() == [1.0] * 3
    assert run.steps()[["loss", "half"]].to_numpy(dtype=float).tolist() == [[1.0, 1.0]] * 3
    assert run.arrow("per_layer_stats").column("mean").null_count == 0
    assert run.steps()["loss_scale"].count() == (0 if scaling == "none" else 3)
    assert run.steps()["clip_coefficient"].tolist()[1:] == pytest.approx([1 / (1 + 1e-6)] * 2)
    assert torchs.call_count == num_passes


def test_clipping_over_several_devices_waits_for_nothing(fake_cuda: NoWaiting, tmp_path: Path) -> None:
    """The first gradient, and with it torch's total, is now on one card and now on the other."""
    with torch.device("cuda:0"):
        model = TinyNet()
    with torch.device("cuda:1"):
        model.mlp_head = TinyNet().mlp_head
    parts = [model.backbone, model.mlp_head]
    with TelemetryCollector(
        model,
        torch.optim.SGD(model.parameters()),
        tmp_path,
        collect_every_n=4,
        on_error="raise",
        flush_interval_s=HOURS_S,
    ) as telemetry:
        for frozen in (None, 0, 1, None, 1, 0, None, None):
            for index, part in enumerate(parts):
                for parameter in part.parameters():
                    parameter.grad = None if index == frozen else torch.empty_like(parameter)
            telemetry.clip_grad_norm_(1.0)
            telemetry.step()
    run = open_run(tmp_path)
    assert run.steps()["clip_rate"].tolist() == [0.25, 0.25]  # the count that arrives is a one
    assert run.gradient_norms()["overall"].notna().all()


def test_the_scale_of_offloaded_gradients_is_not_brought_to_the_host() -> None:
    """Norms on the host beside a scale on the device, as under CPU offload; `meta` is a device that nothing leaves."""
    model, optimizer = tiny()
    backward(model)
    targets = TrainingTargets.of(model, find_groups(model), {"optimizer": optimizer})
    scale = torch.empty((), device="meta")
    stale_gradients = StaleGradients(targets, lambda _: [])
    gradient_pass = GradientPass(targets, scaler_of(scale), Clipping(targets.parameters), stale_gradients)
    snapshot = gradient_pass.take({}, 1, changes=targets.changes())
    numbers = GradientNorms(targets).read(snapshot).numbers
    assert snapshot.norms is not None
    assert list(numbers)[:-1] == snapshot.norms.tolist()
    assert list(numbers)[-1] is scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_the_pass_over_weights_of_any_kind_waits_for_nothing(fake_cuda: NoWaiting, dtype: torch.dtype) -> None:
    """Over long ones in parts, beside some on the host, and from a checkpoint's reference, which is on the host."""
    shapes = [(3, 2), (MAX_AT_ONCE + 1,), (2, 3, 4, 4)]
    weights = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
    weights[2] = weights[2].to(memory_format=torch.channels_last)
    model = nn.ParameterList([*weights, torch.empty(100_000), torch.empty(3)])
    targets = TrainingTargets.of(model, find_groups(model), {"optimizer": torch.optim.SGD(model.parameters())})
    taken = WeightPass()
    reference = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in model.named_parameters()}
    taken.load_state_dict({"batch_idx": 2, "weight_reference": {"batch_idx": 1, "weights": reference}})
    for batch, num_batches in ((3, 2), (4, 1)):
        numbers = taken.take(targets, batch)
        assert numbers.norms.shape == numbers.deltas.shape == numbers.layout.owners.shape
        assert (numbers.norms.device.type, numbers.num_batches) == ("cuda", num_batches)
        assert not numbers.delta_layout.unknown.any()
        taken.state_dict(targets)


def test_a_loss_on_the_device_beside_parameters_on_the_host_is_copied(fake_cuda: NoWaiting) -> None:
    """As under CPU offload: where the numbers are decides, not where the parameters are."""
    readings = [Reading([0.5, None]), Reading([torch.empty((), device="cuda")])]
    staged = vars(recorder)["Staging"]().stage(readings)  # with the fake slots
    with ThreadPoolExecutor(1) as background:  # where tensors are real
        assert background.submit(staged.read).result() == [[0.5, None], [1.0]]


def test_predictions_on_the_device_are_added_without_waiting(fake_cuda: NoWaiting) -> None:
    """Ids too: all is read when the block ends."""
    taken = EpochPredictions(Path("unused"), is_written=lambda: False, write=print, report=print)
    taken.begin()
    taken.add(torch.arange(2, device="cuda"), torch.empty(2, 10, device="cuda"), torch.empty(2, 10, device="cuda"))


def item(loss: Tensor) -> object:
    """As loops do that log by hand."""
    return loss.item()


def cpu(loss: Tensor) -> object:
    """The same in other words."""
    return loss.cpu()


def truth(loss: Tensor) -> object:
    """A comparison that the host decides."""
    return bool(loss > 0)


def copied(loss: Tensor) -> object:
    """A copy into a buffer on the host, as logging into one array does; not pinned, so the flag is of no use."""
    return torch.empty(loss.shape).copy_(loss, non_blocking=True)


def sent(loss: Tensor) -> object:
    """A number sent to the device waits until it is there."""
    return loss + torch.ones(1).to(loss.device)


def asked(loss: Tensor) -> object:
    """A GradScaler's public scale, which waits."""
    return scaler_of(loss).get_scale()


WAYS = [item, cpu, truth, copied, sent, asked]
PATH: list[tuple[Any, str]] = [
    (GradientPass, "take"),
    (gradient_pass, "scaler_state"),
    (CallChecks, "check"),
    *((measure, "read") for measure in (*DEFAULT_MEASURES, WeightNorms, WeightDeltas, LayerStats)),
    (WeightPass, "take"),
    (LayerPlan, "measure"),
    (Staging, "stage"),
    (Clipping, "clip"),
]


@pytest.mark.parametrize("waits", WAYS)
def test_the_proof_can_fail(fake_cuda: NoWaiting, waits: Callable[[Tensor], object]) -> None:
    """A loop that waits raises, so the test above would fail."""
    with pytest.raises(WaitedError, match=r"waits for|copies from the device"):
        waits(torch.empty((), device="cuda"))


@pytest.mark.parametrize("waits", [item, cpu])
@pytest.mark.parametrize(("place", "name"), PATH, ids=lambda one: getattr(one, "__name__", one))
def test_waiting_anywhere_on_the_way_is_refused(
    fake_cuda: NoWaiting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    waits: Callable[[Tensor], object],
) -> None:
    """The proof goes the whole way: whatever waits there ends it."""
    real = getattr(place, name)

    def waiting(*args: Any, **kwargs: Any) -> Any:
        waits(torch.empty((), device="cuda"))
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, waiting)
    with pytest.raises(WaitedError):
        train(tmp_path, "unscaled")


def test_a_copy_that_is_not_asynchronous_is_refused(
    fake_cuda: NoWaiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned memory alone does not make it so."""
    torchs = Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda to, source, **_: torchs(to, source))
    with pytest.raises(WaitedError, match="from the device to the host"):
        train(tmp_path)


@pytest.mark.usefixtures("fake_cuda")
def test_held_out_samples_are_evaluated_without_waiting() -> None:
    """The logits stay on the device, and so do the copies of buffers and batches."""
    with torch.device("cuda"):
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 3))
        model.register_buffer("steps", torch.zeros(4))
        batches = [torch.empty(4, 6), torch.empty(1, 6)]
    ids = tuple((number,) for number in range(5))
    samples = Samples(batches=batches, sizes=[4, 1], labels=np.arange(5) % 3, ids=ids, kind="classes")
    holdout = Holdout(samples, lambda model, batch: model(batch), None, lambda: [model], torch.device("cuda", 0))
    assert [column.name for column in holdout.table(1).columns][-4:] == ["logit_0", "logit_1", "logit_2", "correct"]
    outputs = holdout.outputs(1)
    assert (outputs.device.type, tuple(outputs.shape)) == ("cuda", (5, 3))
    assert not outputs.requires_grad
