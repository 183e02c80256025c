"""The norm of every parameter, and of its difference from the row before, in one pass over the weights.

The reference, a copy of the weights as they were at the row before, is on the weights' devices. The pass reads both,
computes float32 norms of pieces (float64 ones of float64 weights), and copies the weights into the reference. On a CPU
it does all of this with one chunk of a megabyte after the other, while the chunk is in the cache, so that memory
is read twice and written once. On an accelerator it takes as many tensors at once as fill a bounded temporary.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ava_pipeline.collect.norms import (
    ROW_LENGTH,
    NormLayout,
    in_memory_order,
    norms_of_rows,
    norms_of_whole,
    one_vector,
    rows_of,
    sum_dtype,
)
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.errors import MisuseError, in_words
from ava_pipeline.logs import logger

STATE = "weight_reference"
PIECE_LENGTH = ROW_LENGTH // 8
CHUNK_ROWS = 16  # 1 MB of float32 weights and as much of their reference
MAX_AT_ONCE = 2**24  # numbers in a temporary on an accelerator, 64 MB; long tensors are cut into parts of this length

_READABLE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}


@dataclass(frozen=True, slots=True, eq=False)
class WeightNumbers:
    """What the pass of one row found.

    Attributes:
        norms: float32 vector on the device, the norms of pieces of the weights.
        deltas: likewise, of the differences from the reference; the same pieces.
        layout: which parameter each piece belongs to, and which parameters could not be read.
        delta_layout: the same for the differences, where those without a reference are unknown too.
        num_batches: batches since the row of the reference; None if there is none.
    """

    norms: Tensor
    deltas: Tensor
    layout: NormLayout
    delta_layout: NormLayout
    num_batches: int | None


class WeightPass:
    """Makes one pass per row, in the training thread, without waiting for the device.

    `reference_bytes` is the size of the reference; the background thread reads it. A pass that is not used has no
    state, and takes none.
    """

    def __init__(self, *, is_used: bool = True) -> None:
        self._is_used = is_used
        self.reference_bytes = 0
        self._parameters: tuple[nn.Parameter, ...] = ()
        self._plan: _Plan | None = None
        self._reference: dict[int, Tensor] = {}  # by id of the parameter
        self._reference_batch = 0  # 0 if there is no reference, or none that is whole
        self._loaded: Mapping[str, Tensor] = {}
        self._batch_idx = 0
        self._numbers: WeightNumbers | None = None
        self._failure = ""

    def take(self, targets: TrainingTargets, batch_idx: int) -> WeightNumbers:
        """The numbers of a batch's row. Its first call makes the pass; if that raises, so do the calls after it."""
        if batch_idx != self._batch_idx:
            self._batch_idx, self._numbers, self._failure = batch_idx, None, "the pass over the weights did not end"
            try:
                self._numbers = self._make(targets, batch_idx)
            except Exception as error:
                self._failure = f"the pass over the weights failed: {in_words(error)}"
                raise
        if self._numbers is None:
            raise RuntimeError(self._failure)
        return self._numbers

    def state_dict(self, targets: TrainingTargets) -> dict[str, Any]:
        """Clones of the reference by the names of the parameters, and its batch; empty if there is none."""
        if not self._reference_batch:
            return {}
        weights = self._loaded  # if no row came after `load_state_dict`
        if self._plan is not None:
            named = zip(targets.names, map(id, targets.parameters), strict=True)
            weights = {name: self._reference[key] for name, key in named if key in self._reference}
        weights = {name: weight.clone() for name, weight in weights.items()}
        return {STATE: {"batch_idx": self._reference_batch, "weights": weights}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the reference from what a collector's `state_dict` returned; raise MisuseError if it is none."""
        if not self._is_used or STATE not in state:
            return
        try:
            given, up_to = state[STATE], state["batch_idx"]
            batch_idx, weights = given["batch_idx"], dict(given["weights"])
            is_valid = 1 <= batch_idx <= up_to and all(isinstance(one, Tensor) for one in weights.values())
        except (KeyError, TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise MisuseError(f"state[{STATE!r}] is not a reference of weights: give all that state_dict() returned.")
        self._reference_batch, self._loaded = batch_idx, weights

    @torch.no_grad()
    def _make(self, targets: TrainingTargets, batch_idx: int) -> WeightNumbers:
        # A pass that is interrupted leaves a reference of which parts are newer than others, so it is none.
        before, self._reference_batch = self._reference_batch, 0
        plan, new = self._plan, frozenset[int]()
        if plan is None or targets.parameters is not self._parameters or not plan.fits(targets.parameters):
            plan, new = self._renew(targets)
        referenced = plan.readable - new if before else frozenset[int]()
        norms, deltas = plan.measure(targets.parameters)
        self._reference_batch = batch_idx
        return WeightNumbers(
            norms=norms,
            deltas=deltas,
            layout=plan.layout(plan.readable),
            delta_layout=plan.layout(referenced),
            num_batches=batch_idx - before if referenced else None,
        )

    def _renew(self, targets: TrainingTargets) -> "tuple[_Plan, frozenset[int]]":
        """Plan anew, and return the positions of the parameters whose weights at the row before are not known."""
        known = {*map(id, self._parameters)}
        older = {key: weight for key, weight in self._reference.items() if key in known}
        if self._loaded:
            older = {
                id(parameter): self._loaded[name]
                for name, parameter in zip(targets.names, targets.parameters, strict=True)
                if name in self._loaded
            }
        reference, new = {}, []
        for position, parameter in enumerate(targets.parameters):
            if targets.is_sharded or not is_readable(parameter):
                continue
            before = older.get(id(parameter))
            if before is None or not _fits(before, parameter):
                before = parameter
                new.append(position)
            # Copied even if it fits, because the order of the numbers in memory may be another one now.
            reference[id(parameter)] = torch.empty_like(parameter).copy_(before, non_blocking=True)
        if self._loaded and (misfits := [targets.names[position] for position in new]):
            logger.warning(
                "the reference of weight_deltas in the checkpoint does not fit %d parameters, such as %s: "
                "the columns of their groups are null in the next row.",
                len(misfits),
                misfits[0],
            )
        self._loaded = {}
        self._parameters, self._reference = targets.parameters, reference
        self._plan = _Plan(targets.parameters, reference)
        self._note_size()
        return self._plan, frozenset(new)

    def _note_size(self) -> None:
        size = sum(weight.nbytes for weight in self._reference.values())
        if size != self.reference_bytes:
            devices = sorted({str(weight.device) for weight in self._reference.values()})
            logger.info("weight_deltas: the reference takes %.1f MB on %s.", size / 1e6, ", ".join(devices))
        self.reference_bytes = size


class _Plan:
    """How to pass over parameters and their reference; valid while each parameter keeps its type and strides.

    `readable` has the positions of the parameters that are measured: those with a copy in `reference`, by their id.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], reference: Mapping[int, Tensor]) -> None:
        self.readable = frozenset(at for at, parameter in enumerate(parameters) if id(parameter) in reference)
        self._positions = sorted(self.readable)
        self._unreadable = [at for at in range(len(parameters)) if at not in self.readable]
        self._types = [_type(parameters[position]) for position in self._positions]
        self._strides = [parameters[position].stride() for position in self._positions]
        self._layouts: dict[frozenset[int], NormLayout] = {}
        self._by_rows: list[tuple[int, list[Tensor]]] = []
        by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for position in self._positions:
            numbers = _real(parameters[position])
            if numbers.device.type == "cpu" and numbers.numel() > ROW_LENGTH and _is_dense(numbers):
                self._by_rows.append((position, _chunks(_real(reference[id(parameters[position])]))))
            else:
                by_kind[numbers.device, numbers.dtype].append(position)
        kinds = sorted(by_kind, key=lambda kind: kind[0].type == "cpu")  # norms are joined where the first ones are
        self._whole = [position for kind in kinds for position in by_kind[kind]]
        parts = [(at, part) for at in self._whole for part in _parts(_real(reference[id(parameters[at])]))]
        self._at_once = [*_bounded([part for _, part in parts])]
        owners = [position for position, _ in parts]
        owners += [position for position, chunks in self._by_rows for chunk in chunks for _ in chunk]
        self._owners = np.array(owners, dtype=np.int64)
        self._num_parameters = len(parameters)
        self._is_multi_device = len({device for device, *_ in self._types}) > 1

    def fits(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether the parameters are as they were when it was made."""
        readable = [parameters[position] for position in self._positions]
        return (
            [*map(_type, readable)] == self._types
            and [parameter.stride() for parameter in readable] == self._strides
            and not any(is_readable(parameters[position]) for position in self._unreadable)
        )

    def layout(self, known: frozenset[int]) -> NormLayout:
        """What the pieces belong to, if the parameters at these positions are known; the same object if they are."""
        layout = self._layouts.get(known)
        if layout is None:
            present = np.isin(np.arange(self._num_parameters), [*known])
            layout = self._layouts[known] = NormLayout(
                owners=self._owners, present=present, unknown=~present, is_scaled=np.zeros_like(present)
            )
        return layout

    def measure(self, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
        """Make the pass: the norms of the pieces of the weights, and those of the differences from the reference.

        The reference is a copy of the weights afterwards.
        """
        norms: list[Tensor] = []
        deltas: list[Tensor] = []
        parts = [part for position in self._whole for part in _parts(_real(parameters[position]))]
        for place, references in self._at_once:
            _measure_at_once(parts[place], references, norms, deltas)
        for position, references in self._by_rows:
            numbers = _real(parameters[position])
            dtype = sum_dtype(numbers)
            for weights, reference in zip(_chunks(numbers), references, strict=True):
                _measure_rows(weights, reference, dtype, norms, deltas)
        if not norms:
            return torch.empty(0, device="cpu"), torch.empty(0, device="cpu")
        is_multi_device = self._is_multi_device
        return one_vector(norms, is_multi_device=is_multi_device), one_vector(deltas, is_multi_device=is_multi_device)


def _measure_rows(
    weights: Tensor, reference: Tensor, dtype: torch.dtype, norms: list[Tensor], deltas: list[Tensor]
) -> None:
    """Measure rows that are read from memory once, and copy them into the reference."""
    rows = weights.to(dtype)  # itself, but for half precision
    # In the reference's own memory, so that nothing else is in the cache.
    differences = rows - reference.to(dtype) if reference.dtype != dtype else torch.sub(rows, reference, out=reference)
    # A sum of fewer numbers loses fewer digits; differences are often all alike, as in the first steps of Adam.
    length = PIECE_LENGTH if rows.shape[1] % PIECE_LENGTH == 0 else rows.shape[1]
    pieces = norms_of_rows(differences.view(-1, length), dtype)
    deltas.append(norms_of_rows(pieces.view(len(rows), -1), dtype))
    norms.append(norms_of_rows(rows, dtype))
    reference.copy_(weights)


def _measure_at_once(
    weights: list[Tensor], references: list[Tensor], norms: list[Tensor], deltas: list[Tensor]
) -> None:
    """Measure tensors of one kind in a few calls for all of them, and copy them into the reference."""
    dtype = sum_dtype(weights[0])
    norms.append(norms_of_whole(weights, dtype))
    # These calls are what torch's own optimizers are built on. They have no public names.
    if dtype == weights[0].dtype:
        differences = [*torch._foreach_sub(weights, references)]  # noqa: SLF001
    else:
        differences = _converted(weights, dtype)
        torch._foreach_sub_(differences, _converted(references, dtype))
    deltas.append(norms_of_whole(differences, dtype))
    torch._foreach_copy_(references, weights)


def _converted(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    converted = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(converted, tensors)  # as above
    return converted


def _bounded(references: list[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Cut a list into neighbours of one kind with at most `MAX_AT_ONCE` numbers together."""
    start, size = 0, 0
    for index, reference in enumerate(references):
        first = references[start]
        is_other = (reference.device, reference.dtype) != (first.device, first.dtype)
        if index > start and (is_other or size + reference.numel() > MAX_AT_ONCE):
            yield slice(start, index), references[start:index]
            start, size = index, 0
        size += reference.numel()
    if references:
        yield slice(start, len(references)), references[start:]


def is_readable(parameter: nn.Parameter) -> bool:
    """Whether this process holds all of a parameter's numbers, as floats.

    It does not if they are sharded among processes (a DTensor, or DeepSpeed's third stage), packed by a quantization,
    on no device (meta), or not made yet (lazy).
    """
    return (
        not is_lazy(parameter)
        and parameter.layout is torch.strided
        and parameter.dtype in _READABLE
        and not parameter.is_meta
        and not any(hasattr(parameter, name) for name in ("placements", "__tensor_flatten__", "ds_tensor"))
    )


_type = attrgetter("device", "dtype", "shape", "layout")


def _fits(older: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a tensor can be the reference of a parameter; it may be on another device."""
    return older.shape == parameter.shape and older.dtype == parameter.dtype


def _real(weight: Tensor) -> Tensor:
    return torch.view_as_real(weight) if weight.is_complex() else weight


def _is_dense(numbers: Tensor) -> bool:
    return in_memory_order(numbers).is_contiguous()


def _chunks(numbers: Tensor) -> list[Tensor]:
    """The rows of a dense tensor, as many together as stay in a CPU's cache."""
    return [chunk for rows in rows_of(numbers) for chunk in torch.split(rows, CHUNK_ROWS)]


def _parts(numbers: Tensor) -> Sequence[Tensor]:
    """A tensor, or parts of it that are short enough for an accelerator's temporary."""
    if numbers.numel() <= MAX_AT_ONCE or not _is_dense(numbers):
        return (numbers,)
    return torch.split(in_memory_order(numbers).view(-1), MAX_AT_ONCE)
