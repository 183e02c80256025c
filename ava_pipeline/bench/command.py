"""The command `ava-pipeline bench`; torch is imported only after the options are checked."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from ava_pipeline.errors import require_extra

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
class Setting:
    """The options, folder and progress display that every part of a bench receives."""

    options: Options
    folder: Path  # for temporary files
    track: Track  # `track(n, title)` counts n rounds and shows the progress


def bench_command(  # noqa: PLR0913  # each is an option of the command line
    more: Annotated[list[int] | None, typer.Argument(metavar="", hidden=True)] = None,
    *,
    model: Annotated[
        Literal["resnet18", "resnet50"], typer.Option(help="The backbone in front of the head.")
    ] = "resnet18",
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="The device to train on.")] = "auto",
    image_size: Annotated[int, typer.Option(min=32, help="Width and height of the images, in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per training step.")] = 32,
    every: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N [N ...]", help="Values of collect_every_n to compare, such as --every 1 10."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Training steps with each setting.")] = 100,
    rows: Annotated[int, typer.Option(min=100, help="Rows that the writer benchmark writes per table.")] = 1_000_000,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run forward passes under bfloat16 autocast.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Use the channels-last memory format.")] = (
        False
    ),
    peers: Annotated[
        bool, typer.Option("--peers", help="Also measure other libraries doing the same; needs the extra 'peers'.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON, for programs.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the figures; needs the extra 'plot'.")
    ] = None,
) -> None:
    """Measure what telemetry costs on this machine, and compare it with the targets.

    Example: ava-pipeline bench --model resnet18 --every 1 10 --peers --json outputs/bench/resnet18.json

    Each figure is a ratio within this run, or a median with its interval. Close
    other programs first.

    Exit status: 0 success, also if targets are missed, which the table shows;
    2 wrong usage.
    """
    options = Options(
        model=model,
        device=device,
        image_size=image_size,
        batch_size=batch_size,
        every=_spacings(every, more),
        steps=steps,
        rows=rows,
        bf16=bf16,
        channels_last=channels_last,
        peers=peers,
    )
    require_extra("A bench", "train", "torch", "torchvision")
    if plot_file is not None:
        require_extra("--plot", "plot", "matplotlib")
    from rich.console import Console

    from ava_pipeline.bench.measure import measure
    from ava_pipeline.bench.report import print_report, write_plot

    report = measure(options, Console(stderr=True))
    if json_file is not None:
        report.write(json_file)
    if plot_file is not None:
        write_plot(report, plot_file)
    print_report(report, Console())


def _spacings(every: list[int] | None, more: list[int] | None) -> tuple[int, ...]:
    """Take `--every 1 10` and `--every 1 --every 10` alike."""
    if more and not every:
        raise typer.BadParameter(f"got {more} without an option; values of collect_every_n are given as --every 1 10.")
    if min(more or [1]) < 1:
        raise typer.BadParameter(f"--every: expected numbers of batches, 1 or more, got {more}.")
    return tuple(dict.fromkeys([*(every or []), *(more or [])])) or Options().every
