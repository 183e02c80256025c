"""The command `ava-pipeline watch`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.read.run import open_run
from ava_pipeline.watch.live_run import LiveRun
from ava_pipeline.watch.view import view


def watch_command(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    *,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks.")] = 1.0,
) -> None:
    """Follow a running job in the terminal: latest events, norms, rates, values, how far behind it is.

    Example: ava-pipeline watch outputs/ava/demo

    Bars are the latest rows on a logarithmic scale, the newest at the right;
    ! is nan or inf, _ is 0. It ends when the run has finished. A run that
    crashed or was interrupted is waited for, until it is resumed or Ctrl-C.
    Where the output is no terminal, the run is shown once.
    Exit status: 0 well, Ctrl-C too, 2 no run or wrong usage.
    """
    watched, console = LiveRun(open_run(run)), Console()
    try:
        watched.look(utc_now())
        if console.is_terminal:
            _follow(watched, console, interval)
    except KeyboardInterrupt:
        pass  # the way to end this
    console.print(view(watched, utc_now(), console.width))


def _follow(watched: LiveRun, console: Console, interval: float) -> None:
    """Show a run until it has finished, on a screen of its own that is gone afterwards."""
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as screen:
        while True:
            screen.update(view(watched, utc_now(), *console.size), refresh=True)
            if watched.is_finished:
                return
            time.sleep(interval)
            watched.look(utc_now())
