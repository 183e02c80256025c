"""The training loss: squared earth mover's distance between score distributions."""

import torch
from torch import Tensor


def squared_emd(logits: Tensor, votes: Tensor) -> Tensor:
    """Squared EMD with r = 2: the mean squared difference of the cumulative distributions, a float32 scalar.

    Talebi and Milanfar, NIMA (2018), eq. 1, without the root, whose gradient is infinite at a perfect prediction.
    `logits` are [batch, 10] of any float dtype; softmax and sums are computed in float32 even under autocast. `votes`
    are [batch, 10] counts (or shares) of scores 1..10, no row all zero.
    """
    with torch.autocast(logits.device.type, enabled=False):
        predicted = logits.float().softmax(dim=1)
        truth = votes.float() / votes.float().sum(dim=1, keepdim=True)
        return (predicted - truth).cumsum(dim=1).square().mean()


def drop_unless(keep: Tensor, gradients: list[Tensor]) -> None:
    """Set gradients, nan and inf too, to zero in place unless the scalar `keep` is true; do not wait for the device."""
    for gradient in gradients:
        gradient.copy_(torch.where(keep, gradient, torch.zeros_like(gradient)))
