"""Snapshots of the weights of two runs at the same batch: how far is each layer of one from that of the other?"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.read.snapshots import WeightSnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OLDER_SUFFIX = ".pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDistance:
    """A tensor of weights in two runs. All figures are computed in float64.

    Attributes:
        name: the tensor's name in the model.
        l2_distance: the L2 norm of the difference; None if a weight is not a finite number.
        relative: that distance, relative to the larger of the two norms; 0 if both are 0.
        cosine: of the angle between the two; None if a norm is 0.
        norm_a: the L2 norm in run A.
        norm_b: that in run B.
        is_equal: whether every weight is equal bit for bit.
    """

    name: str
    l2_distance: float | None
    relative: float | None
    cosine: float | None
    norm_a: float | None
    norm_b: float | None
    is_equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherShape:
    """A tensor that has another shape in each run."""

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotComparison:
    """The snapshots of one batch.

    Attributes:
        batch_idx: the batch.
        epoch: its 0-based epoch in run A.
        layers: the tensors of both, most different first; those with weights that are not finite come first.
        other_shape: tensors of one name and another shape.
        only_a: tensors that only run A has.
        only_b: tensors that only run B has.
    """

    batch_idx: int
    epoch: int
    layers: tuple[LayerDistance, ...]
    other_shape: tuple[OtherShape, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether both have the same tensors, equal bit for bit."""
        return not (self.other_shape or self.only_a or self.only_b) and all(layer.is_equal for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsComparison:
    """The snapshots of two runs, matched by batch.

    Attributes:
        snapshots: of the batches of which both runs have one, in order.
        only_a: batches of which only run A has a snapshot.
        only_b: batches of which only run B has one.
    """

    snapshots: tuple[SnapshotComparison, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]

    @property
    def first_unequal(self) -> int | None:
        """The first batch whose snapshots are not equal bit for bit."""
        return next((one.batch_idx for one in self.snapshots if not one.is_equal), None)


class Snapshot(Protocol):
    """What is asked of a snapshot; `read.snapshots.WeightSnapshot` is one."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor that is stored."""

    def tied(self) -> dict[str, str]:
        """Further names -> the name under which the same tensor is stored."""

    def tensors(self, names: Collection[str] | None = None) -> "Iterator[tuple[str, NDArray[Any]]]":
        """The tensors of these names, in the order of the file."""


def match_snapshots(
    a: Sequence[WeightSnapshot], b: Sequence[WeightSnapshot]
) -> tuple[list[tuple[WeightSnapshot, WeightSnapshot]], tuple[int, ...], tuple[int, ...]]:
    """The snapshots of the same batch, in order, and the batches of which A alone and B alone has one.

    Older collectors count the batches from 1 again in every epoch, so that the epoch of their files counts too.
    """
    with_epoch = any(one.path.suffix == _OLDER_SUFFIX for one in (*a, *b))
    of_a, of_b = ({(one.epoch if with_epoch else 0, one.batch_idx): one for one in these} for these in (a, b))
    pairs = [(of_a[key], of_b[key]) for key in sorted(of_a.keys() & of_b.keys())]
    only_a, only_b = (tuple(batch for _, batch in sorted(keys)) for keys in (of_a.keys() - of_b, of_b.keys() - of_a))
    return pairs, only_a, only_b


def compare_weights(batch_idx: int, epoch: int, a: Snapshot, b: Snapshot) -> SnapshotComparison:
    """Compare the weights of two runs at one batch, matched by name.

    Args:
        batch_idx: the batch.
        epoch: its 0-based epoch.
        a: the snapshot of run A.
        b: that of run B.

    Raises:
        DamagedFileError: a file is damaged.
        ConfigError: a file needs torch, which is not installed.
    """
    stored = a.shapes(), b.shapes()
    tied = a.tied(), b.tied()
    shapes_a, shapes_b = (
        {**shapes, **{name: shapes[kept] for name, kept in also.items()}}
        for shapes, also in zip(stored, tied, strict=True)
    )
    shared = [name for name in shapes_a if name in shapes_b and (name in stored[0] or name in stored[1])]
    same_shape = [name for name in shared if shapes_a[name] == shapes_b[name]]
    layers = [layer_distance(name, one, other) for name, one, other in _pairs(a, b, same_shape, tied)]
    return SnapshotComparison(
        batch_idx=batch_idx,
        epoch=epoch,
        layers=tuple(sorted(layers, key=_most_different_first)),
        other_shape=tuple(
            OtherShape(name=name, shape_a=shapes_a[name], shape_b=shapes_b[name])
            for name in sorted(shared)
            if shapes_a[name] != shapes_b[name]
        ),
        only_a=tuple(sorted(set(shapes_a) - set(shapes_b))),
        only_b=tuple(sorted(set(shapes_b) - set(shapes_a))),
    )


def _pairs(
    a: Snapshot, b: Snapshot, names: Sequence[str], tied: tuple[Mapping[str, str], Mapping[str, str]]
) -> "Iterator[tuple[str, NDArray[Any], NDArray[Any]]]":
    """The tensors of these names in both; one by one where both files hold them in the same order, as two runs do."""
    places_a, places_b = ({name: also.get(name, name) for name in names} for also in tied)
    in_order_a = [name for name in a.shapes() if name in set(places_a.values())]
    in_order_b = [name for name in b.shapes() if name in set(places_b.values())]
    if places_a == places_b and in_order_a == in_order_b:
        for (name, one), (_, other) in zip(a.tensors(in_order_a), b.tensors(in_order_b), strict=True):
            yield name, one, other
        return
    of_a, of_b = dict(a.tensors(in_order_a)), dict(b.tensors(in_order_b))
    for name in names:
        yield name, of_a[places_a[name]], of_b[places_b[name]]


def layer_distance(name: str, a: "NDArray[Any]", b: "NDArray[Any]") -> LayerDistance:
    """The distance of two tensors of one shape, in float64."""
    one, other = (np.asarray(tensor, dtype=np.float64).ravel() for tensor in (a, b))
    is_equal = a.dtype == b.dtype and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    norm_a, norm_b, distance = (_finite(_norm(vector)) for vector in (one, other, _difference(one, other)))
    largest = max(norm_a or 0.0, norm_b or 0.0)
    cosine = None
    if norm_a and norm_b:
        cosine = float(np.clip((one / norm_a) @ (other / norm_b), -1.0, 1.0))
    return LayerDistance(
        name=name,
        l2_distance=distance,
        relative=None if distance is None else distance / largest if largest else 0.0,
        cosine=cosine,
        norm_a=norm_a,
        norm_b=norm_b,
        is_equal=is_equal,
    )


def _difference(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        difference: Floats = a - b
    return difference


def _norm(vector: Floats) -> float:
    """Scaled by the largest number, so that no square overflows."""
    largest = float(np.max(np.abs(vector), initial=0.0))
    if not largest or not np.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm(vector / largest))


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None


def _most_different_first(layer: LayerDistance) -> tuple[bool, float, str]:
    return layer.relative is not None, -(layer.relative or 0.0), layer.name
