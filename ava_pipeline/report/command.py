"""The commands `ava-pipeline report` and `ava-pipeline plot`."""

import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_pipeline.errors import ConfigError, RunError, require_extra

if TYPE_CHECKING:
    from ava_pipeline.contract.layout import RunLayout


def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN [RUN ...]", help="Run directories, or patterns in quotes.", show_default=False),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page to write; by default RUN/report.html of a single run."
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    live: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Serve the page, kept up to date, on 127.0.0.1; 0 picks a free port."
        ),
    ] = None,
) -> None:
    """Write an HTML page of one or several runs: findings, plots and tables.

    Example: ava-pipeline report outputs/ava/demo --open

    Example: ava-pipeline report 'outputs/ava/*' -o compared.html

    Example: ava-pipeline report outputs/ava/demo --live 8080

    The page is one file that needs no network. Several runs are drawn over each
    other. With --live nothing is written: the page follows the runs until Ctrl-C.

    Exit status: 0 success, 1 a file cannot be read, 2 no run or wrong usage.
    """
    from ava_pipeline.many_runs.find import find_runs
    from ava_pipeline.report.live import serve
    from ava_pipeline.report.page import write_report

    found = find_runs(runs)
    require_extra("A report", "report", "jinja2", "plotly")
    if live is not None:
        if output is not None:
            raise typer.BadParameter("--live serves the page and writes no file; leave out --output.")
        serve(found, live, announce=partial(_announce, open_it=open_it))
        return
    path = output or _default_path(list(found.values()))
    if path.is_dir():
        raise typer.BadParameter(f"-o {path} is a folder; give the name of a file in it.")
    with _naming_the_file(path):
        write_report({name: layout.root for name, layout in found.items()}, path)
    typer.echo(f"Report: {path}")
    if open_it:
        webbrowser.open(path.resolve().as_uri())


def plot_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The picture; its suffix, such as .png or .svg, sets the format."
        ),
    ] = Path("norms.png"),
) -> None:
    """Draw the gradient norms of a run as a picture.

    Example: ava-pipeline plot outputs/ava/demo -o norms.png

    Exit status: 0 success, 1 a file cannot be read, 2 no run, no norms to draw
    or wrong usage.
    """
    from ava_pipeline.contract.layout import RunLayout
    from ava_pipeline.report.picture import write_picture
    from ava_pipeline.report.run_data import read_run_data

    require_extra("A picture", "plot", "matplotlib")
    run_data = read_run_data(run.resolve().name, RunLayout(run))
    with _naming_the_file(output):
        write_picture(run_data, output)
    typer.echo(f"Picture: {output}")


def _default_path(layouts: Sequence["RunLayout"]) -> Path:
    if len(layouts) > 1:
        raise typer.BadParameter(f"a page of {len(layouts)} runs needs a file name: give it with -o FILE.html.")
    return layouts[0].report


@contextmanager
def _naming_the_file(path: Path) -> Iterator[None]:
    """Raise a ConfigError that names the file if it cannot be written."""
    try:
        yield
    except RunError:
        raise  # a run's own file, which cannot be read
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file with -o.") from error


def _announce(url: str, *, open_it: bool) -> None:
    typer.echo(f"Report: {url} (Ctrl-C ends it)")
    if open_it:
        webbrowser.open(url)
