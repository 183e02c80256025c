"""What a bench is asked to measure."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

Track: TypeAlias = Callable[[int, str], Iterable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command line; the figures to reach are stated for the defaults.

    Attributes:
        model: the backbone, `resnet18` or `resnet50`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        image_size: width and height, in pixels.
        batch_size: images a training step.
        every: the spacings of collected steps to compare.
        steps: training steps of each kind.
        rows: collected steps that the writer writes.
        bf16: forward passes under bfloat16 autocast.
        channels_last: images and weights in that memory format.
        peers: measure what others offer, too.
    """

    model: str = "resnet18"
    device: str = "auto"
    image_size: int = 64
    batch_size: int = 32
    every: tuple[int, ...] = (1, 10)
    steps: int = 100
    rows: int = 1_000_000
    bf16: bool = False
    channels_last: bool = False
    peers: bool = False

    def is_like(self, other: "Options") -> bool:
        """Whether both train the same: a share of the step can be judged only where the step is known."""
        names = ("model", "image_size", "batch_size", "bf16", "channels_last")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def command(self) -> str:
        """The command line that measures the same again."""
        words = ["python", "-m", "ava_pipeline.bench"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not False:
                words += [f"--{field.name.replace('_', '-')}", *_words(value)]
        return shlex.join(words)


def _words(value: object) -> list[str]:
    if isinstance(value, bool):
        return []
    return [str(one) for one in value] if isinstance(value, tuple) else [str(value)]


@dataclass(frozen=True, slots=True)
class Setting:
    """What every part of a bench is given.

    Attributes:
        options: what to measure.
        folder: for files that nobody needs afterwards.
        track: `track(n, title)` counts n rounds and shows how far they are.
    """

    options: Options
    folder: Path
    track: Track
