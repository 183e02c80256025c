"""The command `ava-pipeline validate`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ava_pipeline.errors import AvaPipelineError, MisuseError, NotARunError
from ava_pipeline.terminal import printable
from ava_pipeline.validate.validate import RULES, validate_run
from ava_pipeline.validate.validate_file import validate_file
from ava_pipeline.validate.violations import Rule, Violation


@dataclass(frozen=True, slots=True)
class Validation:
    """The violations of one run directory or file.

    Attributes:
        path: as it was given.
        violations: in the order they were made.
        strict: warnings count as problems.
    """

    path: str
    violations: Sequence[Violation]
    strict: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that counts."""
        counting = {"error", "warning"} if self.strict else {"error"}
        return counting.isdisjoint(violation.severity for violation in self.violations)

    def to_text(self) -> str:
        """A line a violation, then one that sums up; nothing in them moves a terminal's cursor."""
        return "\n".join(printable(line) for line in (*map(str, self.violations), self._summary()))

    def to_json(self) -> dict[str, Any]:
        """Whether it is clean, and the violations."""
        return {
            "clean": self.is_clean,
            "violations": [asdict(violation) for violation in self.violations],
        }

    def _summary(self) -> str:
        num = Counter(violation.severity for violation in self.violations)
        told = ", ".join(
            f"{num[kind]} {kind}{'s' * (num[kind] != 1)}" for kind in ("error", "warning", "info") if num[kind]
        )
        verdict = "clean" if self.is_clean else "not clean"
        return f"{self.path}: {verdict}{f' ({told})' if told else ''}."


def rules_text(rules: Sequence[Rule]) -> str:
    """A line a rule: its id, its severity where it is no error, and what it says."""
    width = max(len(rule.id) for rule in rules)
    return "\n".join(
        f"{rule.id:{width}}  {rule.sentence}{'' if rule.severity == 'error' else f' ({rule.severity})'}"
        for rule in rules
    )


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
            typer.echo(printable(str(error)), err=True)
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
