"""Where every random number of training comes from: torch's generators and Python's, not NumPy's."""

import random
from typing import Any

import torch


def seed_all(seed: int) -> None:
    """Seed torch on every device, and Python."""
    torch.manual_seed(seed)
    random.seed(seed)


def rng_states() -> dict[str, Any]:
    """The states of all generators, as plain types and tensors."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def restore_rng_states(states: dict[str, Any]) -> None:
    """Go on with the random numbers where `rng_states` was called.

    CUDA states are taken where there are as many devices as then; else those generators go on from the seed.
    """
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
