"""References in float64, and weights to compare to the bit."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ava_pipeline import open_run


def norm(parameters: Iterable[nn.Parameter], *, scale: float = 1.0) -> float:
    """The L2 norm of all gradients as one vector, in float64; gradients are multiplied by `scale`."""
    gradients = [one.grad.double().reshape(-1) for one in parameters if one.grad is not None]
    return float(torch.cat(gradients).norm()) / scale


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same bits."""
    states = [model.state_dict() for model in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def column(run: Path, table: str, name: str) -> list[float]:
    """One column of a run's table; raise KeyError if it has none."""
    values: list[float] = open_run(run).table(table)[name].tolist()
    return values


def features(num: int = 12) -> tuple[Tensor, Tensor]:
    """Seeded inputs (num, 6) and score distributions (num, 10)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, 6, generator=generator), torch.rand(num, 10, generator=generator).softmax(dim=1)
