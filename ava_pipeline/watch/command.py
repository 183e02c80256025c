"""The command `ava-pipeline watch`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ava_pipeline.watch.live_run import LiveRun


def watch_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    *,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two updates.")] = 1.0,
) -> None:
    """Follow a running job in the terminal: events, norms, rates, values and delay.

    Example: ava-pipeline watch outputs/ava/demo

    Bars are the latest rows on a logarithmic scale, the newest at the right;
    ! is nan or inf, _ is 0. The command ends when the run has finished. If the
    run crashed or was interrupted, it waits until the run is resumed or for
    Ctrl-C. If the output is not a terminal, the run is printed once.

    Exit status: 0 success, also after Ctrl-C; 2 no run or wrong usage.
    """
    from rich.console import Console

    from ava_pipeline.contract.manifest import utc_now
    from ava_pipeline.read.run import open_run
    from ava_pipeline.watch.live_run import LiveRun
    from ava_pipeline.watch.view import view

    live_run, console = LiveRun(open_run(run)), Console()
    try:
        live_run.update(utc_now())
        if console.is_terminal:
            _follow(live_run, console, interval)
    except KeyboardInterrupt:
        pass  # the usual way to end this command
    console.print(view(live_run, utc_now(), console.width))


def _follow(live_run: "LiveRun", console: "Console", interval: float) -> None:
    """Show a run until it has finished, on an alternate screen that is cleared afterwards."""
    from rich.live import Live

    from ava_pipeline.contract.manifest import utc_now
    from ava_pipeline.watch.view import view

    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as screen:
        while True:
            screen.update(view(live_run, utc_now(), *console.size), refresh=True)
            if live_run.is_finished:
                return
            time.sleep(interval)
            live_run.update(utc_now())
