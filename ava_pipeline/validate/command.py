"""The command `ava-pipeline validate`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_pipeline.contract.finding import Finding, verdict_line
from ava_pipeline.errors import AvaPipelineError, ExitStatus, MisuseError, exit_status

if TYPE_CHECKING:
    from ava_pipeline.validate.listing import Rule


@dataclass(frozen=True, slots=True)
class Validation:
    """The findings in one run directory or file; `strict` counts warnings as problems."""

    path: str
    findings: Sequence[Finding]
    strict: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether no finding counts as a problem."""
        problems = {"error", "warning"} if self.strict else {"error"}
        return problems.isdisjoint(finding.severity for finding in self.findings)

    def to_text(self) -> str:
        """One line per finding and a summary, all of them safe to print on a terminal."""
        from ava_pipeline.terminal import printable

        verdict = "clean" if self.is_clean else "not clean"
        lines = (*map(str, self.findings), verdict_line(self.path, verdict, self.findings))
        return "\n".join(map(printable, lines))

    def to_json(self) -> dict[str, Any]:
        """Whether it is clean, and the findings."""
        return {"clean": self.is_clean, "findings": [finding.to_json() for finding in self.findings]}


def rules_text(rules: "Sequence[Rule]") -> str:
    """One line per rule: its id, its sentence, and its severity if that is not error."""
    width = max(len(rule.id) for rule in rules)
    return "\n".join(
        f"{rule.id:{width}}  {rule.sentence}{'' if rule.severity == 'error' else f' ({rule.severity})'}"
        for rule in rules
    )


def _list_rules(is_given: bool) -> None:  # noqa: FBT001  # typer passes the option's value by position
    if is_given:
        from ava_pipeline.validate.validate import RULES

        typer.echo(rules_text(RULES))
        raise typer.Exit(ExitStatus.SUCCESS)


def _path_of(text: str) -> Path:
    """Refuse the empty text of an unset shell variable, which pathlib takes for the current directory."""
    if not text:
        raise typer.BadParameter("expected a run directory, got an empty text; use . for the current directory.")
    return Path(text)


def validate_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            parser=_path_of,
            help="Run directories, or single .csv and .parquet files of runs.",
            show_default=False,
        ),
    ],
    *,
    table: Annotated[
        str | None, typer.Option(metavar="NAME", help="The table of a single file, if its name does not show it.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Skip a rule, or a family of rules such as norms; may be repeated."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as problems.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    rules: Annotated[  # noqa: ARG001  # its callback lists the rules and exits
        bool, typer.Option("--rules", help="List every rule and exit.", is_eager=True, callback=_list_rules)
    ] = False,
) -> None:
    r"""Check runs against their contract: tables, predictions, metrics and manifest.

    Example: ava-pipeline validate outputs/ava/* --json

    Each finding is a line: file:line column: severity: what is wrong \[rule].
    The line is that of the CSV file; in Parquet it is the number of the row.
    Rows that a running job has yet to finish are not findings. A single file
    is checked by the rules for its rows; if it is in a run, the manifest of
    that run applies. A path that is not a run is reported, the others are still
    checked, and the exit status is the worst of all.

    Exit status: 0 all clean, 1 problems found, 2 no run or wrong usage,
    3 an internal error.
    """
    from ava_pipeline.terminal import printable

    worst = ExitStatus.SUCCESS
    results: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            found = Validation(str(path), _findings(path, table, ignore or ()), strict)
        except AvaPipelineError as error:
            worst = max(worst, exit_status(error))
            results[str(path)] = {"clean": None, "findings": [], "problem": str(error)}
            typer.echo(printable(str(error)), err=True)
            continue
        worst = max(worst, ExitStatus.SUCCESS if found.is_clean else ExitStatus.PROBLEMS)
        results[found.path] = found.to_json()
        if not as_json:
            typer.echo(found.to_text())
    if as_json:
        typer.echo(json.dumps(results, indent=1))
    raise typer.Exit(worst)


def _findings(path: Path, table: str | None, ignore: Sequence[str]) -> list[Finding]:
    from ava_pipeline.validate.validate import validate_file, validate_run

    if path.is_file():
        return validate_file(path, table=table, ignore=ignore)
    if table is not None:
        raise MisuseError(f"{path} is a run directory, whose tables are known: leave --table out, or give a file.")
    return validate_run(path, ignore=ignore)
