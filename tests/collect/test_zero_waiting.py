"""The training thread never waits for the device: shown on fake CUDA tensors, where nothing can be waited for.

The measures run up to an injected staging under `FakeTensorMode` with gradients on a CUDA device that does not exist.
A dispatch mode refuses whatever would make the host wait: reading a scalar, asking for its truth, shapes that depend
on data, and every copy from the device to the host.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ava_pipeline.collect.amp import ScalerState, Scaling
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.collect.measure import Measure, Moment, Reading, find_measures
from ava_pipeline.collect.norms import NormPlan
from ava_pipeline.collect.predictions import EpochPredictions
from ava_pipeline.collect.staging import Parcel, Staging
from ava_pipeline.collect.watched import Watched, named_parameters
from ava_pipeline.write.rows import Numbers, StagedNumbers
from tests.collect.models import TinyNet

REFUSED = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "allclose")


class WaitedError(AssertionError):
    """Something would have made the host wait."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Refuses every operation whose result the host has to wait for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at the operation, then run it."""
        name = func.overloadpacket.__name__
        if name in REFUSED or torch.Tag.data_dependent_output in func.tags:
            raise WaitedError(f"{name} waits for the device")
        out = func(*args, **(kwargs or {}))
        given = [one for one in args if isinstance(one, Tensor)]
        made = out if isinstance(out, Tensor) else None
        goes_home = made is not None and made.device.type == "cpu" and any(one.is_cuda for one in given)
        if name in {"_to_copy", "copy_"} and (goes_home or _copies_home(name, given)):
            raise WaitedError(f"{name} copies from the device to the host")
        return out


def _copies_home(name: str, given: Sequence[Tensor]) -> bool:
    return name == "copy_" and given[0].device.type == "cpu" and given[1].is_cuda


class KeptStaging(Staging):
    """Stands where the pinned copy is: takes what goes into it."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def stage(self, readings: Sequence[Reading]) -> StagedNumbers:
        """Gather one parcel, as for a device."""
        parcel = Parcel(torch.device("cuda"))
        for reading in readings:
            parcel.add(reading.numbers)
        self.parts = [torch.cat(parcel.parts)]
        return _Never()


class _Never:
    def read(self) -> list[Numbers]:
        raise NotImplementedError("fake numbers cannot be read")


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fake tensors, no waiting, and synchronize calls that raise."""

    def refuse(*_: object) -> None:
        raise WaitedError("synchronize waits for the device")

    for place, name in (
        (torch.cuda, "synchronize"),
        (torch.cuda.Event, "synchronize"),
        (torch.cuda.Stream, "synchronize"),
    ):
        monkeypatch.setattr(place, name, refuse)
    with FakeTensorMode(), NoWaiting():  # type: ignore[no-untyped-call]  # torch's
        yield


def on_fake_cuda() -> tuple[TinyNet, torch.optim.Optimizer]:
    """A model on a device that does not exist, with gradients of every kind."""
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


def moment(model: nn.Module, optimizer: torch.optim.Optimizer, clipping: Clipping) -> Moment:
    """A collected step with everything on the device: scale, loss, rates, clip."""
    gradients = [parameter.grad for parameter in model.parameters()]
    scale = torch.empty((), device="cuda")
    plan = NormPlan.of(gradients)
    norms = plan.measure(gradients)
    return Moment(
        gradients=gradients,
        norms=norms,
        plan=plan,
        scaler=ScalerState(scale, {id(optimizer): Scaling.SCALED}),
        clipping=clipping.look(norms, scale, is_shared=False),
        values={"loss": torch.empty((), device="cuda"), "half": torch.empty(1, device="cuda", dtype=torch.float16)},
        time_s=0.0,
    )


def measures(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Measure]:
    """Every measure there is."""
    named = named_parameters(model)
    watched = Watched(
        parameters=tuple(named.values()),
        names=tuple(named),
        groups=find_groups(model),
        optimizers={"optimizer": optimizer},
        value_names=("loss", "half"),
    )
    return [measure(watched) for measure in find_measures()]


def collect(model: nn.Module, optimizer: torch.optim.Optimizer) -> KeptStaging:
    """What the training thread does at a collected step, up to the copy; twice, with a clip between."""
    clipping, staging = Clipping(list(model.parameters())), KeptStaging()
    every = measures(model, optimizer)
    for _ in range(2):
        now = moment(model, optimizer, clipping)
        staging.stage([measure.read(now) for measure in every])
        clipping.clip(1.0, 1)
    return staging


def test_a_collected_step_waits_for_nothing(fake_cuda: None) -> None:
    """Every measure, the clip and the parcel of the copy: all on the device."""
    model, optimizer = on_fake_cuda()
    vector = collect(model, optimizer).parts[0]
    present = sum(parameter.grad is not None for parameter in model.parameters())
    # Norms, scale, one rate, then of steps: scale, total and its scale, number shortened, loss, half.
    assert vector.shape == (present + 1 + 1 + 6,)
    assert vector.is_cuda
    assert vector.dtype == torch.float32


def test_predictions_on_the_device_are_taken_without_waiting(fake_cuda: None) -> None:
    """Ids too: all is read when the block ends."""
    taken = EpochPredictions(Path("unused"), is_written=False, write=print, on_trouble=print)
    taken.add(torch.arange(2, device="cuda"), torch.empty(2, 10, device="cuda"), torch.empty(2, 10, device="cuda"))


def item(loss: Tensor) -> object:
    """What loops do that log by hand."""
    return loss.item()


def cpu(loss: Tensor) -> object:
    """The same in other words."""
    return loss.cpu()


def truth(loss: Tensor) -> object:
    """A comparison that the host decides."""
    return bool(loss > 0)


def copied(loss: Tensor) -> object:
    """A copy into a buffer on the host, as logging into one array does."""
    return torch.empty(loss.shape).copy_(loss)


@pytest.mark.parametrize("waits", [item, cpu, truth, copied])
def test_the_proof_can_fail(fake_cuda: None, waits: Callable[[Tensor], object]) -> None:
    """A loop that waits is refused: the test above would see it."""
    loss = torch.empty((), device="cuda")
    with pytest.raises(WaitedError, match=r"waits for the device|copies from the device"):
        waits(loss)
