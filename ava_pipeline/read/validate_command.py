"""The command line of a validation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ava_pipeline.errors import AvaPipelineError, MisuseError, NotARunError
from ava_pipeline.printed import plain
from ava_pipeline.read.validate import RULES, validate_run
from ava_pipeline.read.validate_file import validate_file
from ava_pipeline.read.validation import Validation, rules_text
from ava_pipeline.read.violations import Violation

_WELL, _PROBLEMS, _WRONG_USAGE = 0, 1, 2


def _list_rules(value: bool) -> None:  # noqa: FBT001  # typer hands the option over by place
    if value:
        typer.echo(rules_text(RULES))
        raise typer.Exit(_WELL)


def _named(text: str) -> Path:
    """No text, as of an unset variable of a shell, would be the current directory."""
    if not text:
        raise typer.BadParameter("it is empty; give a run directory, or . for the current one.")
    return Path(text)


def validate_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", parser=_named, help="Run directories, or single .csv and .parquet files of runs."
        ),
    ],
    *,
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which table a single file is of, where it cannot be told.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A rule, or a family such as norms, that may be broken.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as problems.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    rules: Annotated[  # noqa: ARG001  # its callback lists them and ends
        bool, typer.Option("--rules", help="List every rule and end.", is_eager=True, callback=_list_rules)
    ] = False,
) -> None:
    r"""Check run directories against their contract: tables, predictions, metrics and manifest.

    Example: ava-pipeline validate outputs/ava/* --json

    Each violation is a line: file:row column: what is wrong \[rule].
    What a running run has not finished is none. Of a single file the rules of
    its own rows are checked, as the run's manifest has them where it lies in one.
    Of many, one that is no run is told and the others are checked all the same;
    the exit status is that of the worst.
    Exit status: 0 all clean, 1 problems found, 2 no run or wrong usage,
    3 could not tell.
    """
    worst, told = _WELL, {}
    for path in paths:
        try:
            found = Validation(str(path), _violations(path, table, ignore or ()), strict)
        except AvaPipelineError as error:
            worst = max(worst, _WRONG_USAGE if isinstance(error, MisuseError | NotARunError) else _PROBLEMS)
            told[str(path)] = _problem(error)
            typer.echo(plain(str(error)), err=True)
            continue
        worst = max(worst, _WELL if found.is_clean else _PROBLEMS)
        told[found.path] = found.to_json()
        if not as_json:
            typer.echo(found.to_text())
    if as_json:
        typer.echo(json.dumps(told, indent=1))
    raise typer.Exit(worst)


def _violations(path: Path, table: str | None, ignore: Sequence[str]) -> list[Violation]:
    if path.is_file():
        return validate_file(path, table=table, ignore=ignore)
    if table is not None:
        raise MisuseError(f"{path} is a directory, whose tables are known: leave --table out, or give a single file.")
    return validate_run(path, ignore=ignore)


def _problem(error: AvaPipelineError) -> dict[str, Any]:
    """Instead of what was found, why nothing could be."""
    return {"clean": None, "violations": [], "problem": str(error)}
