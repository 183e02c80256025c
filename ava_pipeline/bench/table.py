"""The tables at the end of a bench."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ava_pipeline.bench.comparison import Compared
from ava_pipeline.bench.figures import TIMES, Figure, Target, shown
from ava_pipeline.bench.report import Report, told_versions
from ava_pipeline.printed import plain_table

_INFORMATIONAL = "informational"


def show(report: Report, console: Console) -> None:
    """Print everything."""
    console.print(_figures(report))
    if report.compared:
        console.print()
        console.print(_peers(report))
    told = ", ".join(f"{name} {number}" for name, number in told_versions().items())
    where = f"{report.machine}; {told}; commit {report.commit or 'unknown'}\n{report.options.command()}"
    console.print(f"\n{escape(where)}", highlight=False, soft_wrap=True)


def _figures(report: Report) -> Table:
    table = plain_table("What telemetry costs: medians, with 95 % intervals")
    table.add_column("what", overflow="fold")
    for name in ("measured", "interval", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reached", no_wrap=True)
    for figure in report.figures:
        table.add_row(
            escape(figure.title),
            f"{shown(figure.estimate.value)} {figure.unit}",
            interval(figure),
            target(figure.target),
            reached(figure),
        )
    return table


def _peers(report: Report) -> Table:
    table = plain_table("The same work through others: time in the training thread a recorded step")
    table.add_column("what", overflow="fold")
    for name in ("ms", "over ours", "same columns"):
        table.add_column(name, justify="right")
    for one in report.compared:
        table.add_row(escape(one.title), *_measured(one), "yes" if one.has_same_columns else "no")
    return table


def _measured(one: Compared) -> tuple[str, str]:
    if one.record_ms is None or one.times_ours is None:
        return escape(one.missing or "not measured"), ""
    return shown(one.record_ms.value), f"{shown(one.times_ours.value)} {TIMES}"


def interval(figure: Figure) -> str:
    """Where the figure lies, or nothing where it was counted."""
    _, low, high = figure.estimate
    return "" if low == high else f"{shown(low)}–{shown(high)}"  # noqa: RUF001  # a range


def target(given: Target | None) -> str:
    """The target in words."""
    if given is None:
        return ""
    return f"{'≥' if given.at_least else '≤'} {given.limit:,g}"


def reached(figure: Figure) -> str:
    """Whether the target is."""
    if figure.is_reached is None:
        return _INFORMATIONAL
    return "yes" if figure.is_reached else "no"
