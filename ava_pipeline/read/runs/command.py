"""The command line that lists runs."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from ava_pipeline.errors import MisuseError
from ava_pipeline.read.runs.chosen import ordered, where
from ava_pipeline.read.runs.found import find_runs
from ava_pipeline.read.runs.printed import show_runs
from ava_pipeline.read.runs.settings import differing
from ava_pipeline.read.runs.summary import Summary, summary_of


def runs_command(
    patterns: Annotated[
        list[str], typer.Argument(metavar="GLOB...", help="Run directories, or patterns in quotes.", show_default=False)
    ],
    *,
    sort: Annotated[
        str | None, typer.Option(metavar="NAME", help="A metric, best first; a setting, least first; -NAME: reversed.")
    ] = None,
    condition: Annotated[
        str | None, typer.Option("--where", metavar="TEXT", help="Only runs of which this is true.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not look for findings, which reads every row.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, with all settings.")] = False,
) -> None:
    r"""List runs, a line each: status, age, last batch, best metrics, settings that differ, first finding.

    Example: ava-pipeline runs 'outputs/ava/*' --sort srcc --where 'lr>1e-3'

    --where takes comparisons (= != < <= > >=) of settings, metrics, run, status,
    age_s, batch, epoch and findings, joined by and or a comma; of a setting's
    name the last part will do, and lr is base_lr. A run that is said to be running and was silent for
    two minutes counts as killed. A run that cannot be read is always listed.
    Exit status: 0 well, 1 a run could not be read, 2 nothing matches or wrong
    usage.
    """
    found = [summary_of(name, layout, findings=not quick) for name, layout in find_runs(patterns).items()]
    try:
        chosen = where(found, condition) if condition is not None else found
        listed = ordered(chosen, sort) if sort is not None and chosen else chosen
    except MisuseError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        typer.echo(json.dumps(_to_json(listed), indent=1))
    else:
        show_runs(listed, Console())
    raise typer.Exit(int(any(one.problem for one in listed)))


def _to_json(listed: Sequence[Summary]) -> dict[str, object]:
    names = differing([one.settings for one in listed])
    return {"differing_settings": names, "runs": [one.to_json() for one in listed]}
