"""The command `ava-pipeline validate`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_pipeline.errors import AvaPipelineError, ExitStatus, MisuseError, exit_status

if TYPE_CHECKING:
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
    violations: "Sequence[Violation]"
    strict: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that counts."""
        counting = {"error", "warning"} if self.strict else {"error"}
        return counting.isdisjoint(violation.severity for violation in self.violations)

    def to_text(self) -> str:
        """A line a violation, then one that sums up; nothing in them moves a terminal's cursor."""
        from ava_pipeline.terminal import printable

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


def rules_text(rules: "Sequence[Rule]") -> str:
    """A line a rule: its id, its severity where it is no error, and what it says."""
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
        raise typer.BadParameter("expected a run directory, got an empty text; the current directory is a dot: .")
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
        str | None, typer.Option(metavar="NAME", help="The table of a single file, if its name does not say it.")
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

    Each violation is a line: file:row column: what is wrong \[rule].
    Rows that a running job has yet to finish are not violations. A single file
    is checked by the rules for its rows; if it lies in a run, the manifest of
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
            found = Validation(str(path), _violations(path, table, ignore or ()), strict)
        except AvaPipelineError as error:
            worst = max(worst, exit_status(error))
            results[str(path)] = {"clean": None, "violations": [], "problem": str(error)}
            typer.echo(printable(str(error)), err=True)
            continue
        worst = max(worst, ExitStatus.SUCCESS if found.is_clean else ExitStatus.PROBLEMS)
        results[found.path] = found.to_json()
        if not as_json:
            typer.echo(found.to_text())
    if as_json:
        typer.echo(json.dumps(results, indent=1))
    raise typer.Exit(worst)


def _violations(path: Path, table: str | None, ignore: Sequence[str]) -> "list[Violation]":
    from ava_pipeline.validate.validate import validate_run
    from ava_pipeline.validate.validate_file import validate_file

    if path.is_file():
        return validate_file(path, table=table, ignore=ignore)
    if table is not None:
        raise MisuseError(f"{path} is a directory, whose tables are known: leave --table out, or give a single file.")
    return validate_run(path, ignore=ignore)
