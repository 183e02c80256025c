"""The command `ava-pipeline diagnose`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ava_pipeline.errors import ExitStatus


def diagnose_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Report warning signs and healthy signs in a run's numbers, with what to try.

    Example: ava-pipeline diagnose outputs/ava/demo

    Works while the run is being written, after a crash and afterwards.

    Exit status: 0 healthy, or too few rows to tell, or gradients not measured;
    1 a warning or worse was found; 2 no run or wrong usage.
    """
    from ava_pipeline.diagnose.diagnose import diagnose_run

    found = diagnose_run(run)
    typer.echo(json.dumps({"run": str(run), **found.to_json()}, indent=1) if as_json else found.to_text(str(run)))
    raise typer.Exit(ExitStatus.PROBLEMS if found.verdict == "not healthy" else ExitStatus.SUCCESS)
