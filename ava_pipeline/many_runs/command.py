"""The command `ava-pipeline runs`."""

import json
from typing import Annotated

import typer

from ava_pipeline.errors import ExitStatus, MisuseError


def runs_command(
    patterns: Annotated[
        list[str], typer.Argument(metavar="GLOB...", help="Run directories, or patterns in quotes.", show_default=False)
    ],
    *,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Sort by a metric, best first, or by a setting, least first; -NAME reverses."
        ),
    ] = None,
    condition: Annotated[
        str | None, typer.Option("--where", metavar="TEXT", help="List only runs that meet this condition.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip findings, which need every row to be read.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with all settings, for programs.")] = False,
) -> None:
    """List runs, one a line: status, best metrics, settings that differ, first finding.

    Example: ava-pipeline runs 'outputs/ava/*' --sort srcc --where 'lr>1e-3'

    --where takes comparisons (= != < <= > >=) of settings, metrics, run, status,
    age_s, batch, epoch and findings, joined by "and" or a comma. The last part of
    a setting's name is enough, and lr means base_lr. A run whose manifest says
    running, but which has been silent for two minutes, counts as killed. A run
    that cannot be read is always listed.

    Exit status: 0 success, 1 a run could not be read, 2 no run matches or wrong
    usage.
    """
    from rich.console import Console

    from ava_pipeline.many_runs.find import find_runs
    from ava_pipeline.many_runs.selection import ordered, where
    from ava_pipeline.many_runs.summary import differing, summary_of
    from ava_pipeline.many_runs.table import show_runs

    found = [summary_of(name, layout, findings=not quick) for name, layout in find_runs(patterns).items()]
    try:
        chosen = where(found, condition) if condition is not None else found
        listed = ordered(chosen, sort) if sort is not None and chosen else chosen
    except MisuseError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        names = differing([run.settings for run in listed])
        typer.echo(json.dumps({"differing_settings": names, "runs": [run.to_json() for run in listed]}, indent=1))
    else:
        show_runs(listed, Console())
    raise typer.Exit(ExitStatus.PROBLEMS if any(run.problem for run in listed) else ExitStatus.SUCCESS)
