"""The training loss: squared earth mover's distance between score distributions."""

import torch
from torch import Tensor


def squared_emd(logits: Tensor, votes: Tensor) -> Tensor:
    """Squared EMD with r = 2: the mean squared difference of the cumulative distributions.

    Talebi and Milanfar, NIMA (2018), eq. 1, without the root, whose gradient is infinite at a perfect prediction.

    Args:
        logits: [batch, 10] of any float dtype; softmax and sums are computed in float32 even under autocast.
        votes: [batch, 10] vote counts (or shares) of scores 1..10, no row all zero.

    Returns:
        The mean over the batch, a float32 scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        predicted = logits.float().softmax(dim=1)
        truth = votes.float() / votes.float().sum(dim=1, keepdim=True)
        return (predicted - truth).cumsum(dim=1).square().mean()


def drop_unless(keep: Tensor, gradients: list[Tensor]) -> None:
    """Set gradients to zero in place unless `keep` is true, without waiting for the device.

    Args:
        keep: a boolean scalar on the gradients' device.
        gradients: any shapes; nan and inf become zero too.
    """
    for gradient in gradients:
        gradient.copy_(torch.where(keep, gradient, torch.zeros_like(gradient)))
