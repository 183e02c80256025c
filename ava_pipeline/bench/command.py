"""The command `ava-pipeline bench`; torch is imported only after the options are checked."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ava_pipeline.bench.options import Options
from ava_pipeline.errors import require_extra


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
    require_extra("A benchmark", "train", "torch", "torchvision")
    if plot_file is not None:
        require_extra("--plot", "plot", "matplotlib")
    from rich.console import Console

    from ava_pipeline.bench.report import measure, print_report, write_plot

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
