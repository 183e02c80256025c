"""Other tools that record gradients, measured on the same gradients.

Each tool is prepared, measured and closed before the next one, so that its background work, such as wandb's service
process, costs that tool and not the next.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from ava_pipeline.bench.options import BenchContext
from ava_pipeline.bench.results import TIMES, Estimate, Result, Target, median, ratio
from ava_pipeline.bench.timing import Clock, Samples, interleaved
from ava_pipeline.bench.workload import Workload
from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.collect.targets import named_parameters


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model after a backward pass, whose gradients are recorded."""

    model: nn.Module
    optimizer: Optimizer
    loss: Tensor  # a scalar on the model's device
    groups: Mapping[str, Sequence[nn.Parameter]]  # column -> the parameters that it measures

    def rates(self) -> dict[str, float]:
        """Column -> learning rate of one optimizer group."""
        return {f"lr_group_{index}": float(group["lr"]) for index, group in enumerate(self.optimizer.param_groups)}


class Peer(ABC):
    """One way of recording gradients; `has_same_columns` if it records the collector's norms, rates and loss."""

    title: ClassVar[str]  # in the table
    packages: ClassVar[tuple[str, ...]] = ()
    has_same_columns: ClassVar[bool] = False

    @classmethod
    def missing(cls) -> str | None:
        """How to install the missing packages; None if none is missing."""
        absent = [name for name in cls.packages if find_spec(name) is None]
        return f"not installed ({', '.join(absent)}): pip install 'ava-pipeline[peers]'" if absent else None

    @abstractmethod
    def prepare(self, trained: TrainedModel, folder: Path) -> None:
        """Open files in the folder."""

    @abstractmethod
    def record(self, step: int) -> None:
        """Record the gradients as they are now, in the training thread."""

    @abstractmethod
    def close(self) -> None:
        """Finish the files."""


class Ours(Peer):
    """`TelemetryCollector`, collecting every step."""

    title = "ava_pipeline: TelemetryCollector.step"
    has_same_columns = True

    def prepare(self, trained: TrainedModel, folder: Path) -> None:
        """Create the collector."""
        self._values = {"loss": trained.loss}
        self._telemetry = TelemetryCollector(trained.model, trained.optimizer, folder, collect_every_n=1)

    def record(self, step: int) -> None:  # noqa: ARG002  # the collector counts steps
        """Collect one row per table."""
        self._telemetry.step(0, values=self._values)

    def close(self) -> None:
        """Close the collector."""
        self._telemetry.close()


class TensorBoardScalars(Peer):
    """`get_total_norm(...).item()` of every group, written as scalars."""

    title = "get_total_norm().item() per group + TensorBoard scalars"
    packages = ("tensorboard",)
    has_same_columns = True

    def prepare(self, trained: TrainedModel, folder: Path) -> None:
        """Open a writer."""
        self._trained = trained
        self._writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(folder)

    def record(self, step: int) -> None:
        """Write one scalar per column."""
        for name, parameters in self._trained.groups.items():
            gradients = [one.grad for one in parameters if one.grad is not None]
            self._writer.add_scalar(f"norm/{name}", nn.utils.get_total_norm(gradients).item(), step)
        for name, rate in self._trained.rates().items():
            self._writer.add_scalar(name, rate, step)
        self._writer.add_scalar("loss", self._trained.loss.item(), step)

    def close(self) -> None:
        """Close the writer."""
        self._writer.close()


class LightningGradNorm(Peer):
    """Lightning's `grad_norm` of the whole model, which gives every parameter's norm and the total, to its CSV."""

    title = "Lightning grad_norm + CSVLogger"
    packages = ("lightning",)

    def prepare(self, trained: TrainedModel, folder: Path) -> None:
        """Open a logger."""
        self._trained = trained
        self._grad_norm: Any = import_module("lightning.pytorch.utilities").grad_norm
        self._logger: Any = import_module("lightning.pytorch.loggers").CSVLogger(folder)

    def record(self, step: int) -> None:
        """Log all norms, rates and the loss, as `log_dict` would pass them on."""
        norms = {name: float(norm) for name, norm in self._grad_norm(self._trained.model, norm_type=2).items()}
        self._logger.log_metrics({**norms, **self._trained.rates(), "loss": self._trained.loss.item()}, step)

    def close(self) -> None:
        """Write the remaining rows."""
        self._logger.save()


class TensorBoardHistograms(Peer):
    """A histogram of every parameter's gradient."""

    title = "TensorBoard histograms of all gradients"
    packages = ("tensorboard",)

    def prepare(self, trained: TrainedModel, folder: Path) -> None:
        """Open a writer."""
        self._model = trained.model
        self._writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(folder)

    def record(self, step: int) -> None:
        """Log one histogram per parameter."""
        for name, parameter in self._model.named_parameters():
            self._writer.add_histogram(name, parameter.grad, step)

    def close(self) -> None:
        """Close the writer."""
        self._writer.close()


class WandbWatch(Peer):
    """Does what the hooks of `wandb.watch` do for every gradient, offline."""

    title = "wandb.watch's histograms, offline"
    packages = ("wandb",)

    def prepare(self, trained: TrainedModel, folder: Path) -> None:
        """Start an offline run."""
        wandb: Any = import_module("wandb")
        self._model = trained.model
        self._run = wandb.init(mode="offline", dir=folder, project="bench", settings=wandb.Settings(silent=True))
        self._history: Any = import_module("wandb.integration.torch.wandb_torch").TorchHistory()

    def record(self, step: int) -> None:
        """Log one histogram per parameter."""
        for name, parameter in self._model.named_parameters():
            self._history.log_tensor_stats(parameter.grad, f"gradients/{name}")
        self._run.log({}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


PEERS: tuple[type[Peer], ...] = (TensorBoardScalars, LightningGradNorm, TensorBoardHistograms, WandbWatch)

TIMES_CHEAPER = Target(1.5, at_least=True)
_STEPS_PER_PEER = 2  # fewer steps than requested, because some peers are slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One tool, measured or not."""

    title: str
    has_same_columns: bool
    missing: str | None = None  # why it was not measured
    record_ms: Estimate | None = None  # how long one recorded step blocks the training thread
    times_ours: Estimate | None = None  # the same, relative to the collector

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values."""
        estimates = {"record_ms": self.record_ms, "times_ours": self.times_ours}
        return asdict(self) | {name: estimate and estimate._asdict() for name, estimate in estimates.items()}


def compare(context: BenchContext, peers: tuple[type[Peer], ...] = PEERS) -> tuple[list[Compared], list[Result]]:
    """Record the same gradients with each installed peer; return every peer, the collector first, and the results."""
    workload = Workload(context.options)
    trained = _trained_model(workload)
    installed: list[type[Peer]] = [Ours, *(peer for peer in peers if peer.missing() is None)]
    times_s = {peer.title: _times_s(peer, trained, context, workload.clock) for peer in installed}
    ours_s = times_s[Ours.title]
    candidates: tuple[type[Peer], ...] = (Ours, *peers)
    compared = [_compared(peer, times_s.get(peer.title), ours_s) for peer in candidates]
    return compared, _results(compared)


def _trained_model(workload: Workload) -> TrainedModel:
    loss = workload.backward()
    parameters = named_parameters(workload.model)
    groups = {
        column: [parameters[name] for name in group.parameters] for column, group in find_groups(workload.model).items()
    }
    return TrainedModel(workload.model, workload.optimizer(), loss, groups)


def _times_s(kind: type[Peer], trained: TrainedModel, context: BenchContext, clock: Clock) -> Samples:
    peer, steps = kind(), count(1)
    folder = context.folder / kind.__name__
    folder.mkdir()
    peer.prepare(trained, folder)
    try:
        rounds = context.track(max(2, context.options.steps // _STEPS_PER_PEER), kind.title)
        return interleaved({kind.title: lambda: peer.record(next(steps))}, rounds, clock)[kind.title]
    finally:
        peer.close()


def _compared(peer: type[Peer], times_s: Samples | None, ours_s: Samples) -> Compared:
    if times_s is None:
        return Compared(title=peer.title, has_same_columns=peer.has_same_columns, missing=peer.missing())
    return Compared(
        title=peer.title,
        has_same_columns=peer.has_same_columns,
        record_ms=median(times_s).times(1e3),
        # Peers are measured one after the other, so their samples are not paired.
        times_ours=Estimate.exactly(1.0) if peer is Ours else ratio(times_s, ours_s, in_rounds=False),
    )


def _results(compared: list[Compared]) -> list[Result]:
    """The comparison with the cheapest peer that records the same columns; empty if none is installed."""
    ratios = [peer.times_ours for peer in compared[1:] if peer.has_same_columns and peer.times_ours is not None]
    if not ratios:
        return []
    return [
        Result(
            name="times_cheaper_than_peers",
            title="advantage over the cheapest peer with the same columns",
            unit=TIMES,
            estimate=min(ratios),
            target=TIMES_CHEAPER,
        )
    ]
