"""Mean, spread, least and largest number of every parameter tensor, in one pass over the weights.

The pass computes five float32 numbers for each piece of a tensor. On a CPU a piece has at most 32,000 numbers: it is
read from memory once and then from the cache, in the training thread alone, because torch would share the work with
other threads only from 32,768 numbers on. Many short calls that wait for other threads take a hundred times as long
beside a data loader that keeps the cores busy. Short tensors are stacked with others of the same length, so that a
hundred of them cost a few calls.

Squares are summed around the mean of their piece: around 0, a variance of 2.6e-8 beside a mean of 1, as BatchNorm's
weights have, is lost in float32. The mean itself is rounded, which the sum of the differences, 0 otherwise, corrects.
The background thread combines the pieces in float64. Both formulas are those of Chan, Golub and LeVeque, "Algorithms
for Computing the Sample Variance", The American Statistician 37 (1983).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ava_pipeline.collect.norms import in_memory_order
from ava_pipeline.collect.segments import Segments
from ava_pipeline.contract.arrays import Bools, Floats, Integers

PIECE_LENGTH = 32_000
# On an accelerator no cache has to be filled; the difference from the mean takes this many numbers of its memory.
ACCELERATOR_PIECE_LENGTH = 2**24
_NUM_STATISTICS = 5
# What float8 and packed integers stand for depends on a scale that is kept elsewhere.
_HALF = frozenset({torch.float16, torch.bfloat16})
_DTYPES = _HALF | {torch.float32, torch.float64}


@dataclass(frozen=True, slots=True, eq=False)
class LayerPlan:
    """How to measure parameters; valid while each keeps its `kind`.

    Attributes:
        parts: for each call, the positions of equally long parameters that are stacked, or of a single one.
        is_multi_device: whether the measured parameters are on several devices.
        owners: int64, for each piece the position of its parameter.
        lengths: float64, for each piece how many numbers it has.
        num_params: int64, for each parameter how many numbers it has; 0 if that is unknown.
        is_measured: for each parameter whether its numbers can be read.
        is_unknown: for each parameter whether `num_params` is unknown.
    """

    parts: tuple[tuple[int, ...], ...]
    is_multi_device: bool
    owners: Integers
    lengths: Floats
    num_params: Integers
    is_measured: Bools
    is_unknown: Bools

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter], *, are_shards: bool = False) -> Self:
        """Plan the pass over parameters of any shape, dtype, layout and memory format, on any devices.

        With `are_shards`, each parameter is this process's part of a larger one, so none can be measured.
        """
        is_unknown = np.array([are_shards or is_lazy(parameter) for parameter in parameters])
        is_measured = ~is_unknown & [_is_measurable(parameter) for parameter in parameters]
        num_params = np.array(
            [0 if unknown else parameter.numel() for parameter, unknown in zip(parameters, is_unknown, strict=True)],
            dtype=np.int64,
        )
        parts = _parts(
            {position: parameters[position] for position in map(int, np.flatnonzero(is_measured & (num_params > 0)))}
        )
        pieces = [piece for part in parts for piece in _pieces(part, parameters)]
        return cls(
            parts=tuple(parts),
            is_multi_device=len({parameters[part[0]].device for part in parts}) > 1,
            owners=np.array([owner for owner, _ in pieces], dtype=np.int64),
            lengths=np.array([length for _, length in pieces], dtype=np.float64),
            num_params=num_params,
            is_measured=is_measured,
            is_unknown=is_unknown,
        )

    @property
    def num_numbers(self) -> int:
        """How many numbers `measure` returns."""
        return _NUM_STATISTICS * len(self.owners)

    @torch.no_grad()
    def measure(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Read every measured parameter; there is at least one piece. Nothing waits for the device.

        Return a new float32 vector, on an accelerator if any parameter is on one: for every piece its mean, then for
        every piece the sum and the norm of the differences from it, the least and the largest number.
        """
        measured = [one for part in self.parts for one in _measured([parameters[position] for position in part])]
        vectors = [vector for statistic in zip(*measured, strict=True) for vector in statistic]
        if self.is_multi_device:  # accelerators come first, so nothing is copied from a device to the host
            vectors = [vector.to(vectors[0].device, non_blocking=True) for vector in vectors]
        return torch.cat(vectors)


def kind(parameter: nn.Parameter) -> object:
    """What a plan depends on: a parameter may get other data, and a lazy one gets its shape in the first batch."""
    return None if is_lazy(parameter) else (parameter.dtype, parameter.layout, parameter.device, parameter.shape)


class Statistics(NamedTuple):
    """Statistics of parameters, each (steps, parameters) and in float64; nan where `LayerPlan` has no piece."""

    mean: Floats
    std: Floats
    least: Floats
    largest: Floats
    l2_norm: Floats


def combine_pieces(numbers: Floats, plan: LayerPlan) -> Statistics:
    """Combine what `LayerPlan.measure` returned, (steps, numbers), in the background thread."""
    shape = (len(numbers), len(plan.num_params))
    statistics = Statistics(*(np.full(shape, np.nan) for _ in Statistics._fields))
    statistics.l2_norm[:, plan.is_measured] = 0.0  # of an empty tensor
    if len(plan.owners):
        segments = Segments.of(plan.owners)
        combined = _combined(numbers.reshape(len(numbers), _NUM_STATISTICS, -1), plan.lengths, segments)
        for whole, measured in zip(statistics, combined, strict=True):
            whole[:, segments.positions] = measured
    return statistics


def _combined(numbers: Floats, lengths: Floats, segments: Segments) -> Statistics:
    """Combine (steps, statistics, pieces) to (steps, owners)."""
    rounded, rest, norm, least, largest = numbers[:, :, segments.order].swapaxes(0, 1)
    lengths = lengths[segments.order]
    with np.errstate(all="ignore"):  # weights may be infinite, or nan
        means = np.where(np.isfinite(rounded), rounded + rest / lengths, rounded)
        within = np.maximum(np.square(norm) - np.square(rest) / lengths, 0.0)
        num_params = segments.reduce(np.add, lengths[np.newaxis])
        mean = segments.reduce(np.add, means * lengths) / num_params
        between = lengths * np.square(means - np.repeat(mean, segments.sizes, axis=1))
        squares = segments.reduce(np.add, within + between)
        least = segments.reduce(np.minimum, least)
        l2_norm = np.sqrt(squares + num_params * np.square(mean))
        return Statistics(
            mean=mean,
            std=np.sqrt(squares / (num_params - 1)),
            least=least,
            largest=segments.reduce(np.maximum, largest),
            l2_norm=np.where(np.isnan(l2_norm) & ~np.isnan(least), np.inf, l2_norm),  # inf - inf
        )


def _is_measurable(parameter: nn.Parameter) -> bool:
    """Whether the numbers are in this tensor, and not in tensors that it wraps: sharded, quantized or nested ones."""
    return (
        parameter.dtype in _DTYPES
        and parameter.layout is torch.strided
        and parameter.device.type != "meta"
        and not hasattr(parameter, "__tensor_flatten__")
    )


def _parts(parameters: dict[int, nn.Parameter]) -> list[tuple[int, ...]]:
    """The positions that are measured in one call each: those on accelerators first."""
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for position, parameter in parameters.items():
        length = parameter.numel()
        alike[parameter.device, parameter.dtype, length].append(position)
    parts = []
    for positions in alike.values():
        first = parameters[positions[0]]
        at_once = max(1, _piece_length(first) // first.numel())
        parts += [tuple(positions[start : start + at_once]) for start in range(0, len(positions), at_once)]
    return sorted(parts, key=lambda part: parameters[part[0]].device.type == "cpu")


def _pieces(part: Sequence[int], parameters: Sequence[nn.Parameter]) -> Iterator[tuple[int, int]]:
    """The owner and the length of each piece, in the order in which `_measured` returns their numbers."""
    for position in part:
        num_whole, num_left = divmod(parameters[position].numel(), _piece_length(parameters[position]))
        yield from [(position, _piece_length(parameters[position]))] * num_whole
        if num_left:
            yield position, num_left


def _measured(parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The statistics of the pieces of parameters of one length, kind and device."""
    vectors = [in_memory_order(parameter.detach()).reshape(-1) for parameter in parameters]
    first, length = vectors[0], _piece_length(vectors[0])
    if len(vectors) > 1:
        yield _of_rows(torch.stack(vectors))
        return
    if first.device.type == "cpu":
        yield _of_pieces(first.split(length))  # type: ignore[no-untyped-call]  # torch's
        return
    for piece in first.split(length):  # type: ignore[no-untyped-call]  # torch's
        yield _of_rows(piece.view(1, -1))


def _of_pieces(pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Five float32 vectors of pieces on a CPU, each of which fits into its cache."""
    statistics = torch.stack([number for piece in pieces for number in _of_piece(piece)]).view(-1, _NUM_STATISTICS)
    statistics[:, 2].sqrt_()
    return statistics.float().unbind(dim=1)


def _of_piece(piece: Tensor) -> tuple[Tensor, ...]:
    numbers = piece.float() if piece.dtype in _HALF else piece
    mean = numbers.mean().float()
    least, largest = numbers.aminmax()
    differences = numbers - mean
    total = differences.sum()
    return mean, total, differences.square_().sum(), least, largest


def _of_rows(pieces: Tensor) -> tuple[Tensor, ...]:
    """Five float32 vectors of the rows of a matrix."""
    numbers = pieces.float() if pieces.dtype in _HALF else pieces
    mean = numbers.mean(dim=1, keepdim=True).float()
    differences = numbers - mean
    if pieces.device.type == "cpu":  # where `aminmax` of rows takes twice as long
        least, largest = numbers.amin(dim=1), numbers.amax(dim=1)
    else:
        least, largest = numbers.aminmax(dim=1)
    norm = torch.linalg.vector_norm(differences, dim=1)
    return mean.squeeze(1), differences.sum(dim=1).float(), norm.float(), least.float(), largest.float()


def _piece_length(tensor: Tensor) -> int:
    return PIECE_LENGTH if tensor.device.type == "cpu" else ACCELERATOR_PIECE_LENGTH
