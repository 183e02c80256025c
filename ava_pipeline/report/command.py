"""The commands `ava-pipeline report` and `ava-pipeline plot`."""

import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import ConfigError, RunError
from ava_pipeline.many_runs.find import find_runs
from ava_pipeline.report.live import serve
from ava_pipeline.report.page import need_extra, write_report
from ava_pipeline.report.picture import need_matplotlib, write_picture
from ava_pipeline.report.run_data import read_run_data

_Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where; left out, RUN/report.html.")
]


def report_command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN [RUN ...]", help="Run directories, or a pattern.", show_default=False)
    ],
    *,
    output: _Output = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    live: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Serve the page, fresh, on 127.0.0.1; 0 takes a free port."
        ),
    ] = None,
) -> None:
    """Write one HTML page of a run: findings, plots, tables. It needs no network. Several runs overlay.

    Example: ava-pipeline report outputs/ava/demo --open

    Example: ava-pipeline report 'outputs/ava/*' -o compared.html

    Example: ava-pipeline report outputs/ava/demo --live 8080

    With --live nothing is written; the page follows the run until Ctrl-C.
    Exit status: 0 well, 1 a file cannot be read, 2 no run or wrong usage.
    """
    found = find_runs(runs)
    need_extra()
    if live is not None:
        if output is not None:
            raise typer.BadParameter("--live serves the page and writes none; leave out --output.")
        serve(found, live, tell=partial(_tell, open_it=open_it))
        return
    path = output or _default_path(list(found.values()))
    _write(found, path)
    typer.echo(f"Report: {path}")
    if open_it:
        webbrowser.open(path.resolve().as_uri())


def plot_command(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Its ending says the format: .png, .svg, .pdf.")
    ] = Path("norms.png"),
) -> None:
    """Draw the gradient norms of a run as a picture, by matplotlib.

    Example: ava-pipeline plot outputs/ava/demo -o norms.png

    Exit status: 0 well, 1 a file cannot be read, 2 no run, nothing to draw or
    wrong usage.
    """
    need_matplotlib()
    seen = read_run_data(run.resolve().name, RunLayout(run))
    with _writing(output):
        write_picture(seen, output)
    typer.echo(f"Picture: {output}")


def _default_path(layouts: Sequence[RunLayout]) -> Path:
    if len(layouts) > 1:
        raise typer.BadParameter(f"{len(layouts)} runs on one page: say where it goes with -o FILE.html.")
    return layouts[0].report


def _write(found: Mapping[str, RunLayout], path: Path) -> None:
    if path.is_dir():
        raise typer.BadParameter(f"-o {path} is a folder; give the name of a file in it.")
    with _writing(path):
        write_report(found, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except RunError:
        raise  # of what is read
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Say where with -o.") from error


def _tell(url: str, *, open_it: bool) -> None:
    typer.echo(f"Report: {url} (Ctrl-C ends it)")
    if open_it:
        webbrowser.open(url)
