"""The command `ava-pipeline compare`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ava_pipeline.errors import ExitStatus


def compare_command(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run directory.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.", show_default=False)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with everything, for programs.")] = False,
) -> None:
    """Compare two runs: where do they part, in settings, tables, samples and weights?

    Example: ava-pipeline compare outputs/ava/demo outputs/ava/other

    Rows, held-out samples and weight snapshots are matched by batch. A column
    differs beyond noise where the medians of 30 rows are further apart than 3
    times what the rows scatter; learning rates and whole numbers, where they
    differ at all. Runs may still be running, and need not have the same tables.
    In JSON, null means not measured, and numbers that are not finite are texts.

    Exit status: 0 compared, whether the runs differ or not; 1 a part could not
    be read; 2 no run or wrong usage.
    """
    from ava_pipeline.compare.compare import compare_runs

    found = compare_runs(run_a, run_b)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        from rich.console import Console

        from ava_pipeline.compare.listing import show_comparison

        show_comparison(found, Console())
    raise typer.Exit(ExitStatus.PROBLEMS if found.has_errors else ExitStatus.SUCCESS)
