"""Runs as a table on a terminal, one a line."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ava_pipeline.many_runs.summary import UNREADABLE, Summary, Value, differing, short_names
from ava_pipeline.terminal import GENERATED, metric_text, metric_title, plain_table, printable

_METRICS = ("srcc", "emd_r1", "plcc", "accuracy")
_NUM_METRICS_IF_NARROW = 2
_FLEXIBLE = ("first finding", "settings that differ")
_WIDE_CHARS = 120
_UNLIMITED_CHARS = 100_000  # in a file or a pipe, a run is one line of any length
_STYLES = {"running": "cyan", "finished": "green", "killed": "red", "failed": "red", UNREADABLE: "red"}
_SEVERITY_STYLES = {"warning": "yellow", "error": "red"}
_UNITS_S = (("d", 86_400), ("h", 3_600), ("min", 60))


def show_runs(summaries: Sequence[Summary], console: Console) -> None:
    """Print the table; on a terminal, a line is cut off at the right edge."""
    if console.is_terminal:
        metrics = _METRICS if console.width >= _WIDE_CHARS else _METRICS[:_NUM_METRICS_IF_NARROW]
        console.print(_table(summaries, metrics, fills_line=True))
        return
    console.width = _UNLIMITED_CHARS
    with console.capture() as captured:
        console.print(_table(summaries, _METRICS, fills_line=False))
    console.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _table(summaries: Sequence[Summary], metrics: Sequence[str], *, fills_line: bool) -> Table:
    table = plain_table(_title(summaries))
    table.expand = fills_line
    metrics = [name for name in metrics if any(name in summary.best for summary in summaries)]
    names = short_names(differing([summary.settings for summary in summaries]))
    for name in ("run", "status", "age", "batch", *map(metric_title, metrics), *_FLEXIBLE):
        is_text = name in {"run", "status", *_FLEXIBLE}
        share = 1 if fills_line and name in _FLEXIBLE else None
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis", ratio=share)
    for summary in summaries:
        table.add_row(*_cells(summary, metrics, names))
    return table


def _title(summaries: Sequence[Summary]) -> str:
    title = f"{len(summaries)} run{'s' * (len(summaries) != 1)}, the best of each metric"
    num_generated = sum(summary.is_generated for summary in summaries)
    which = "" if num_generated == len(summaries) else f"{num_generated} of them "
    return f"{title} ({which}{GENERATED})" if num_generated else title


def _cells(summary: Summary, metrics: Sequence[str], names: Mapping[str, str]) -> Iterator[Text]:
    yield Text(printable(summary.name))
    yield Text(printable(summary.status), style=_STYLES.get(summary.status, ""))
    yield Text(_age(summary.age_s))
    yield Text("" if summary.last_batch is None else str(summary.last_batch))
    for name in metrics:
        yield Text(metric_text(name, summary.best[name].value) if name in summary.best else "")
    yield _finding(summary)
    settings = {name: summary.settings[name] for name in names if name in summary.settings}
    yield Text(" ".join(f"{printable(names[name])}={_setting_text(value)}" for name, value in settings.items()))


def _finding(summary: Summary) -> Text:
    """A finding without its message, or the problem of a run that cannot be read, or the verdict."""
    if summary.problem is not None:
        return Text(printable(summary.problem.replace(f"{summary.path}/", "")), style="red")
    if summary.finding is None:
        return Text(summary.verdict or "", style="green" if summary.verdict == "healthy" else "")
    column = f" {summary.finding.column}" if summary.finding.column else ""
    more = f" and {summary.num_findings - 1} more" if summary.num_findings and summary.num_findings > 1 else ""
    text = f"{summary.finding.id}{column} at {summary.finding.place}{more}"
    return Text(printable(text), style=_SEVERITY_STYLES.get(summary.finding.severity, ""))


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in _UNITS_S:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _setting_text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else printable(str(value))
