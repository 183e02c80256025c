"""The L2 norm of every parameter's gradient, in one pass over the gradients.

The pass yields float32 norms of pieces: of whole tensors on an accelerator, of rows of `ROW_LENGTH` numbers on a CPU.
What each number is a norm of stands in a `NormLayout`; the pieces are combined in float64 off the training thread,
sqrt(Σ norm²), which no float32 square could overflow.

On a CPU torch sums the norm of a tensor one number after the other in float32, in one thread. A sum of millions loses
digits (2e-3 on constant gradients) and leaves half of the memory's speed unused. The norms of a matrix's rows are
shared among all cores, and stay within 1e-6 on random and 2e-5 on constant gradients.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROW_LENGTH = 16_384
# Up to here a call of its own costs more than it saves: short tensors are measured together.
SHORT_LENGTH = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class NormLayout:
    """What the numbers of one pass are.

    Attributes:
        owners: int64, the parameter that each number is a piece of; -1 for one whose scale is not known.
        present: bool, a parameter each: whether it had a gradient.
        is_scaled: bool, a parameter each: whether its gradient is still multiplied by the loss scale, which is then
            the last number, behind the norms.
    """

    owners: NDArray[np.int64]
    present: NDArray[np.bool_]
    is_scaled: NDArray[np.bool_]


@torch.no_grad()
def piece_norms(gradients: Sequence[Tensor], *, whole: bool = False) -> Tensor:
    """Measure every gradient.

    Args:
        gradients: at least one, of any shape, dtype, layout and memory format, on any devices; read, never kept.
        whole: on a CPU too one norm a tensor, in torch's own accuracy.

    Returns:
        A new float32 vector, on an accelerator where any of them is; `piece_owners` tells what its numbers are of.
    """
    norms = [part.measure(part.pieces) for part in _parts(gradients, whole=whole)]
    # Accelerators come first, so that nothing is brought home here.
    return norms[0] if len(norms) == 1 else torch.cat([one.to(norms[0].device, non_blocking=True) for one in norms])


def piece_owners(gradients: Sequence[Tensor], *, whole: bool = False) -> NDArray[np.int64]:
    """For each number of `piece_norms`, the position of the gradient it is a piece of."""
    return np.array([owner for part in _parts(gradients, whole=whole) for owner in part.owners], dtype=np.int64)


class _Part(NamedTuple):
    """Pieces that are measured together, and the position of the gradient that each is a piece of."""

    measure: Callable[[Sequence[Tensor]], Tensor]
    pieces: list[Tensor]
    owners: list[int]


def _parts(gradients: Sequence[Tensor], *, whole: bool) -> Iterator[_Part]:
    """All gradients: a device's whole tensors together, and the CPU's long ones as rows."""
    together: dict[torch.device, _Part] = defaultdict(lambda: _Part(_norms, [], []))
    rows = _Part(_norms_of_rows, [], [])
    for position, gradient in enumerate(gradients):
        numbers = dense(gradient)
        part = together[numbers.device]
        if not whole and numbers.numel() > SHORT_LENGTH and numbers.device.type == "cpu":
            matrix, numbers = _rows(numbers)
            rows.pieces.append(matrix)
            rows.owners.extend([position] * len(matrix))
        part.pieces.append(numbers)
        part.owners.append(position)
    yield from (together[device] for device in sorted(together, key=lambda device: device.type == "cpu"))
    if rows.pieces:
        yield rows


def dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient as a dense real tensor: a view wherever it is one already."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    # What torch.nn.utils.get_total_norm is built on: a few kernels for all tensors, and no public name for it.
    norms = torch._foreach_norm(list(tensors), 2, dtype=_sum_dtype(tensors))  # noqa: SLF001
    return torch.stack(norms).float()


def _norms_of_rows(matrices: Sequence[Tensor]) -> Tensor:
    dtype = _sum_dtype(matrices)
    return torch.cat([torch.linalg.vector_norm(matrix, dim=1, dtype=dtype) for matrix in matrices]).float()


def _sum_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Half precision is summed in float32, where squares neither overflow nor vanish as early."""
    dtypes = {tensor.dtype for tensor in tensors}
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def _rows(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """As many whole rows as there are, and what is left: views wherever the numbers lie without gaps."""
    flat = _flat(numbers)
    num_in_rows = flat.numel() // ROW_LENGTH * ROW_LENGTH
    return flat[:num_in_rows].view(-1, ROW_LENGTH), flat[num_in_rows:]


def _flat(gradient: Tensor) -> Tensor:
    """All numbers in one dimension, in the order they lie in memory where that avoids a copy."""
    if not gradient.is_contiguous():
        # A norm knows no order, so any dimension order that makes the tensor contiguous will do.
        order = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
        gradient = gradient.permute(order)
    return gradient.reshape(-1)


def combine(
    numbers: NDArray[np.float64], layout: NormLayout, groups: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """The norm of every group: sqrt(Σ norm²) over its pieces, unscaled, in float64.

    Args:
        numbers: (steps, pieces), or one more where gradients are still scaled.
        layout: what they are.
        groups: for each group the positions of its parameters.

    Returns:
        (steps, groups); nan in a column whose group had no gradient at all, which the caller knows from `layout`.
    """
    norms = numbers[:, : len(layout.owners)]
    if layout.is_scaled.any():
        scale = np.where(layout.is_scaled[layout.owners], numbers[:, len(layout.owners) :], 1.0)
        norms = norms / scale
    squares = np.square(norms)
    columns = [squares[:, np.isin(layout.owners, group)].sum(axis=1) for group in groups]
    norms_of_groups: NDArray[np.float64] = np.sqrt(np.stack(columns, axis=1))
    return norms_of_groups
