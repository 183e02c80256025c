"""Batch statistics: the shares of the labels in each collected batch, counted without waiting for the device."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.builtin_tables import BATCH_STATS
from ava_pipeline.contract.columns import Values
from ava_pipeline.write.channel import Numbers

_PERCENT = 100.0
_MAX_LAYOUTS = 64


class BatchStats(Measure):
    """Reads the labels that were given to `step(labels=...)`.

    One-dimensional labels are classes: the share of each is recorded, in percent. Two-dimensional labels are votes or
    shares of the scores 1, 2, 3, ... of each sample: the mean of the samples' mean scores is recorded, and their
    standard deviation, with n - 1 in the denominator.

    Example:
        telemetry = TelemetryCollector(model, optimizer, run, track_batch_stats=True, label_classes={"winner": 2})
        telemetry.step(epoch, labels={"winner": winner})  # winner_0_pct, winner_1_pct

    Args:
        targets: `label_names` are those of the labels so far that are no classes.
        classes: the number of classes of each label that has classes.
    """

    table = BATCH_STATS

    def __init__(self, targets: TrainingTargets, classes: Mapping[str, int]) -> None:
        super().__init__(targets)
        self._classes = classes
        self._scores = [name for name in targets.label_names if name not in classes]
        self._layouts: dict[_Layout, _Layout] = {}

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The classes of each label, then the mean and the deviation of each score."""
        classes = (f"{name}_{index}_pct" for name, count in self._classes.items() for index in range(count))
        scores = (f"{name}_{what}" for name in self._scores for what in ("mean", "std"))
        return (*classes, *scores)

    @torch.no_grad()
    def read(self, snapshot: StepSnapshot) -> Reading:
        """Count the classes and average the scores, on the labels' device; labels that are not given are null."""
        labels = snapshot.labels
        sizes = {len(label) for label in labels.values()}
        if len(sizes) > 1:
            raise ValueError(f"labels: expected as many of each, got {sorted(sizes)} samples")
        numbers: list[object] = []
        for name, num_classes in self._classes.items():
            label = labels.get(name)
            numbers += [None] * num_classes if label is None else _counts(label, num_classes)
        for name in self._scores:
            label = labels.get(name)
            numbers += [None, None] if label is None else _mean_and_deviation(label)
        return Reading(numbers, self._layout(sizes.pop() if sizes else None))

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """The number of samples, and counts as percent of it."""
        if not isinstance(layout, _Layout):
            raise TypeError(f"expected the layout of batch statistics, got {layout!r}")
        size = layout.batch_size
        columns = dict(zip(self.run_columns, map(list, zip(*numbers, strict=True)), strict=True))
        shares = {name: [_percent(count, size) for count in columns[name]] for name in columns if name.endswith("_pct")}
        return {"batch_size": [size] * len(numbers), **columns, **shares}

    def _layout(self, batch_size: int | None) -> "_Layout":
        """The same object for batches of one size, so that their rows are made together."""
        if len(self._layouts) > _MAX_LAYOUTS:
            self._layouts.clear()
        return self._layouts.setdefault(_Layout(batch_size), _Layout(batch_size))


class _Layout(NamedTuple):
    batch_size: int | None


def _percent(count: object, size: int | None) -> float | None:
    return _PERCENT * float(count) / size if isinstance(count, int | float) and size else None


def _counts(label: Tensor, num_classes: int) -> list[object]:
    """How many samples each class has. `torch.bincount` would wait for the device."""
    is_class = label.reshape(-1, 1) == torch.arange(num_classes, device=label.device)
    return _scalars(is_class.sum(dim=0))


def _mean_and_deviation(votes: Tensor) -> list[object]:
    numbers = votes.to(torch.float32 if votes.device.type == "mps" else torch.float64)  # MPS has no float64
    scores = torch.arange(1, numbers.shape[1] + 1, device=numbers.device, dtype=numbers.dtype)
    means = numbers @ scores / numbers.sum(dim=1)
    if len(means) == 1:
        return [*_scalars(means), None]  # the deviation of one sample is not defined
    return _scalars(torch.stack(torch.std_mean(means)[::-1]))


def _scalars(vector: Tensor) -> list[object]:
    """Each number by itself: as a number if it is on the host, else as a scalar that is staged."""
    return vector.tolist() if vector.device.type == "cpu" else list(vector.unbind())
