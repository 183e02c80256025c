"""What a benchmark is asked to measure, known before torch is imported."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

Track: TypeAlias = Callable[[int, str], Iterable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command line; the figures to reach are stated for the defaults."""

    model: str = "resnet18"
    device: str = "auto"
    image_size: int = 64  # width and height, in pixels
    batch_size: int = 32
    every: tuple[int, ...] = (1, 10)  # the values of collect_every_n to compare
    steps: int = 100  # training steps with each setting
    rows: int = 1_000_000  # collected steps that the writer writes
    bf16: bool = False  # forward passes under bfloat16 autocast
    channels_last: bool = False  # memory format of images and weights
    peers: bool = False  # measure other libraries, too

    def is_like(self, other: "Options") -> bool:
        """Whether both train the same model on the same batches, so that the figures of both can be compared."""
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
class BenchContext:
    """The options, folder and progress display that every part of a bench receives."""

    options: Options
    folder: Path  # for temporary files
    track: Track  # `track(n, title)` counts n rounds and shows the progress
