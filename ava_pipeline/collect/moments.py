"""Taking one collected step's moment: the one pass over the gradients, and what clipping makes of it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ava_pipeline.collect.amp import scaler_state
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.measure import Moment, Value
from ava_pipeline.collect.norms import piece_norms


class Moments:
    """Takes a moment of training, in the training thread, without waiting for the device.

    Args:
        parameters: whose gradients are read, anew each time: they are other tensors after `zero_grad`.
        optimizers: whose gradients a scaler may have unscaled.
        grad_scaler: what scales the loss; None where nothing does.
        clipping: shares the pass.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizers: Iterable[Optimizer],
        grad_scaler: Any,
        clipping: Clipping,
    ) -> None:
        self._parameters = parameters
        self._optimizers = tuple(optimizers)
        self._grad_scaler = grad_scaler
        self._clipping = clipping

    def take(self, values: Mapping[str, Value]) -> Moment:
        """Look at the gradients as they are now.

        Args:
            values: what the user gave to `step`.
        """
        gradients = [parameter.grad for parameter in self._parameters]
        there = [gradient for gradient in gradients if gradient is not None]
        is_whole = self._clipping.is_used
        norms = piece_norms(there, whole=is_whole) if there else None
        scaler = scaler_state(self._grad_scaler, self._optimizers)
        return Moment(
            gradients=gradients,
            norms=norms,
            is_whole=is_whole,
            scaler=scaler,
            clipping=self._clipping.look(gradients, norms, scaler.still_in_gradients),
            values=values,
            time_s=time.time(),
        )
