"""The command line of a bench; torch is imported only once the options are known to be well."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ava_pipeline.bench.options import Options
from ava_pipeline.errors import ConfigError


def bench_command(  # noqa: PLR0913  # each is an option of the command line
    more: Annotated[list[int] | None, typer.Argument(metavar="", hidden=True)] = None,
    *,
    model: Annotated[Literal["resnet18", "resnet50"], typer.Option(help="The backbone in front of the head.")] = (
        "resnet18"
    ),
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to train.")] = "auto",
    image_size: Annotated[int, typer.Option(min=32, help="Width and height, in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a training step.")] = 32,
    every: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N [N ...]", help="Spacings of collected steps to compare: --every 1 10."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Training steps of each kind.")] = 100,
    rows: Annotated[int, typer.Option(min=100, help="Rows a table that the writer writes.")] = 1_000_000,
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward passes under bfloat16 autocast.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Weights in that format.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="The same work through others; extra `peers`.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything, for programs.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="A picture of it; extra `plot`.")
    ] = None,
) -> None:
    """Measure what telemetry costs on this machine, beside its targets.

    Example: ava-pipeline bench --model resnet18 --every 1 10 --peers --json outputs/bench/resnet18.json

    Everything is a ratio within this run, or a median with its interval. Nothing else should run meanwhile.
    The exit status does not tell whether targets are reached; the table does.
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
    _measure(options, json_file, plot_file)


def _measure(options: Options, json_file: Path | None, plot_file: Path | None) -> None:
    _need_torch()
    from ava_pipeline.bench.measure import measure  # noqa: PLC0415  # the other commands work without torch
    from ava_pipeline.bench.plot import need_matplotlib, write_plot  # noqa: PLC0415
    from ava_pipeline.bench.table import show  # noqa: PLC0415

    if plot_file is not None:
        need_matplotlib()
    report = measure(options, Console(stderr=True))
    if json_file is not None:
        report.write(json_file)
    if plot_file is not None:
        write_plot(report, plot_file)
    show(report, Console())


def _spacings(every: list[int] | None, more: list[int] | None) -> tuple[int, ...]:
    """`--every 1 10` and `--every 1 --every 10` are the same."""
    if more and not every:
        raise typer.BadParameter(f"{more} stands for no option; spacings are given as --every 1 10.")
    if min(more or [1]) < 1:
        raise typer.BadParameter(f"--every was given {more}; a spacing is a number of batches, 1 or more.")
    return tuple(dict.fromkeys([*(every or []), *(more or [])])) or Options().every


def _need_torch() -> None:
    try:
        import torch  # noqa: F401, PLC0415  # only to see whether it is there
        import torchvision  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"A bench trains and needs {error.name}: pip install 'ava-pipeline[train]'.") from error
