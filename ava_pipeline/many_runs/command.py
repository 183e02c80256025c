"""The command `ava-pipeline runs`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ava_pipeline.errors import ExitStatus, MisuseError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ava_pipeline.many_runs.summary import Summary, Value


_METRICS = ("srcc", "emd_r1", "plcc", "accuracy")
_HOLDOUT = {"holdout_accuracy": "last holdout acc.", "holdout_mae": "last holdout MAE"}
_NUM_METRICS_IF_NARROW = 2
_FLEXIBLE = ("first finding", "settings that differ")
_WIDE_CHARS = 120
_STYLES = {"running": "cyan", "finished": "green", "killed": "red", "failed": "red", "unreadable": "red"}
_SEVERITY_STYLES = {"warning": "yellow", "error": "red"}
_UNITS_S = (("d", 86_400), ("h", 3_600), ("min", 60))

_Cell: TypeAlias = tuple[str, str]  # text, style


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
    """List runs, one per line: status, best metrics, settings that differ, first finding.

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
    from ava_pipeline.many_runs.summary import differing_settings, summary_of

    found = [summary_of(name, layout, findings=not quick) for name, layout in find_runs(patterns).items()]
    try:
        chosen = where(found, condition) if condition is not None else found
        listed = ordered(chosen, sort) if sort is not None and chosen else chosen
    except MisuseError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        names = differing_settings([run.settings for run in listed])
        typer.echo(json.dumps({"differing_settings": names, "runs": [run.to_json() for run in listed]}, indent=1))
    else:
        show_runs(listed, Console())
    raise typer.Exit(ExitStatus.PROBLEMS if any(run.problem for run in listed) else ExitStatus.SUCCESS)


def show_runs(summaries: Sequence["Summary"], console: "Console") -> None:
    """Print the table; on a terminal, a line is cut off at the right edge."""
    from ava_pipeline.terminal import print_whole_lines

    if console.is_terminal:
        metrics = _METRICS if console.width >= _WIDE_CHARS else _METRICS[:_NUM_METRICS_IF_NARROW]
        console.print(_table(summaries, metrics, fills_line=True))
        return
    print_whole_lines(_table(summaries, _METRICS, fills_line=False), console)


def _table(summaries: Sequence["Summary"], metrics: Sequence[str], *, fills_line: bool) -> "Table":
    from rich.text import Text

    from ava_pipeline.many_runs.summary import differing_settings, short_names
    from ava_pipeline.terminal import metric_title, plain_table, printable

    table = plain_table(_title(summaries))
    table.expand = fills_line
    metrics = [name for name in metrics if any(name in summary.best for summary in summaries)]
    names = short_names(differing_settings([summary.settings for summary in summaries]))
    holdout = [name for name in _HOLDOUT if any(name in summary.holdout for summary in summaries)]
    titles = [*map(metric_title, metrics), *(_HOLDOUT[name] for name in holdout)]
    for name in ("run", "status", "age", "batch", *titles, *_FLEXIBLE):
        is_text = name in {"run", "status", *_FLEXIBLE}
        share = 1 if fills_line and name in _FLEXIBLE else None
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis", ratio=share)
    for summary in summaries:
        cells = _cells(summary, metrics, holdout, names)
        table.add_row(*(Text(printable(text), style=style) for text, style in cells))
    return table


def _title(summaries: Sequence["Summary"]) -> str:
    from ava_pipeline.terminal import GENERATED

    title = f"{len(summaries)} run{'s' * (len(summaries) != 1)}, the best of each metric"
    num_generated = sum(summary.is_generated for summary in summaries)
    which = "" if num_generated == len(summaries) else f"{num_generated} of them "
    return f"{title} ({which}{GENERATED})" if num_generated else title


def _cells(
    summary: "Summary", metrics: Sequence[str], holdout: Sequence[str], names: Mapping[str, str]
) -> Iterator[_Cell]:
    from ava_pipeline.terminal import metric_text

    yield summary.name, ""
    origin = f" ({summary.origin})" if summary.origin else ""
    yield f"{summary.status}{origin}", _STYLES.get(summary.status, "")
    yield _age(summary.age_s), ""
    yield "" if summary.last_batch is None else str(summary.last_batch), ""
    for name in metrics:
        yield metric_text(name, summary.best[name].value) if name in summary.best else "", ""
    for name in holdout:
        value = summary.holdout.get(name)
        yield "" if value is None else metric_text(name.removeprefix("holdout_"), value), ""
    yield _finding(summary)
    settings = {name: summary.settings[name] for name in names if name in summary.settings}
    yield " ".join(f"{names[name]}={_setting_text(value)}" for name, value in settings.items()), ""


def _finding(summary: "Summary") -> _Cell:
    """A finding without its message, or the problem of a run that cannot be read, or the verdict."""
    if summary.problem is not None:
        return summary.problem.replace(f"{summary.path}/", ""), "red"
    if summary.finding is None:
        return summary.verdict or "", "green" if summary.verdict == "healthy" else ""
    column = f" {summary.finding.column}" if summary.finding.column else ""
    more = f" and {summary.num_findings - 1} more" if summary.num_findings and summary.num_findings > 1 else ""
    place = f" at {summary.finding.place}" if summary.finding.place else ""  # empty before the first row
    text = f"{summary.finding.id}{column}{place}{more}"
    return text, _SEVERITY_STYLES.get(summary.finding.severity, "")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in _UNITS_S:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _setting_text(value: "Value") -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
