"""Settings of a training other than its fault, drawn from its seed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

NUM_STEPS = 240
# The batch of a fault that is a single batch, or that starts later.
AT = 160


@dataclass(frozen=True, slots=True)
class Setting:
    """One training's settings.

    Attributes:
        seed: seed of weights, data and order.
        optimizer: name of the optimizer.
        lr: learning rate of the backbone after warm-up.
        head_lr_mult: the head's rate relative to the backbone's.
        schedule: the schedule of the rates.
        depth: residual blocks per stage.
        norm: normalisation of the backbone's layers.
        hidden: widths of the head's hidden layers, at least one.
        batch_size: images per step.
        clip_norm: gradients are clipped to this norm; None does not clip.
        num_steps: optimizer steps.
    """

    seed: int
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: float
    head_lr_mult: float
    schedule: Literal["constant", "cosine", "warmup", "step", "one-cycle", "restarts"]
    depth: int
    norm: Literal["batch", "group", "none"]
    hidden: tuple[int, ...]
    batch_size: int
    clip_norm: float | None
    num_steps: int = NUM_STEPS

    @property
    def is_held_out(self) -> bool:
        """Odd seeds are only used after every threshold is fixed."""
        return self.seed % 2 == 1


_RATES = {"sgd": 3e-2, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 3e-4}


def draw(kind: str, seed: int, num_steps: int = NUM_STEPS) -> Setting:
    """The settings of one training, different for every seed of every kind."""
    rng = np.random.default_rng([seed, *kind.encode()])

    def one(*choices: object) -> object:
        return choices[int(rng.integers(len(choices)))]

    optimizer = one("sgd", "adam", "adamw", "rmsprop")
    return Setting(
        seed=seed,
        optimizer=optimizer,  # type: ignore[arg-type]  # drawn of the allowed ones
        lr=_RATES[str(optimizer)] * float(rng.uniform(0.5, 2.0)),
        head_lr_mult=float(one(1.0, 3.0, 10.0)),  # type: ignore[arg-type]
        schedule=one("constant", "cosine", "warmup", "step", "one-cycle", "restarts"),  # type: ignore[arg-type]
        depth=int(one(1, 2)),  # type: ignore[call-overload]
        norm=one("batch", "batch", "group"),  # type: ignore[arg-type]
        hidden=one((32,), (32, 16)),  # type: ignore[arg-type]
        batch_size=int(one(8, 16, 32)),  # type: ignore[call-overload]
        clip_norm=one(None, None, 5.0),  # type: ignore[arg-type]
        num_steps=num_steps,
    )
