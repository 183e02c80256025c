"""The command `ava-pipeline recover`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ava_pipeline.errors import ExitStatus, MisuseError


def recover_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; only list what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Repair a run that was killed or damaged, and list what was saved and what is lost.

    Example: ava-pipeline recover outputs/ava/demo --dry-run

    Journals become Parquet, and a torn last line of a CSV file is cut off.
    Damaged originals are kept in telemetry/damaged/. The next training in the
    directory does the same, so recovering is only needed to read the files
    with other programs before that.

    Exit status: 0 nothing is lost, 1 something is lost, 2 no run, a run that is
    being written, or wrong usage.
    """
    from ava_pipeline.write.recover import recover_run

    try:
        found = recover_run(run, dry_run=dry_run)
    except MisuseError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())
    raise typer.Exit(ExitStatus.SUCCESS if found.is_complete else ExitStatus.PROBLEMS)
