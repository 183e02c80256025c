"""Runs as a table on a terminal, a line a run."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ava_pipeline.many_runs.summary import UNREADABLE, Summary, Value, differing, short_names
from ava_pipeline.terminal import GENERATED, metric_text, metric_title, plain_table, printable

_METRICS = ("srcc", "emd_r1", "plcc", "accuracy")
_FLEXIBLE = ("first finding", "settings that differ")
_WIDE = 120  # characters: below that, the first two metrics have to do
_STYLES = {"running": "cyan", "finished": "green", "killed": "red", "failed": "red", UNREADABLE: "red"}
_SEVERITY = {"warning": "yellow", "error": "red"}
_UNITS_S = (("d", 86_400), ("h", 3_600), ("min", 60))
_NO_END = 100_000  # characters: where no terminal sets a width, a run is one line however long


def show_runs(summaries: Sequence[Summary], console: Console) -> None:
    """Print the table; a line a run, cut off where the terminal ends."""
    if console.is_terminal:
        console.print(_table(summaries, _METRICS if console.width >= _WIDE else _METRICS[:2], fills_line=True))
        return
    console.width = _NO_END
    with console.capture() as captured:
        console.print(_table(summaries, _METRICS, fills_line=False))
    console.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _table(summaries: Sequence[Summary], known: Sequence[str], *, fills_line: bool) -> Table:
    table = plain_table(_title(summaries))
    table.expand = fills_line
    metrics = [name for name in known if any(name in one.best for one in summaries)]
    names = short_names(differing([one.settings for one in summaries]))
    for name in ("run", "status", "age", "batch", *map(metric_title, metrics), *_FLEXIBLE):
        is_text = name in {"run", "status", *_FLEXIBLE}
        share = 1 if fills_line and name in _FLEXIBLE else None
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis", ratio=share)
    for one in summaries:
        table.add_row(*_cells(one, metrics, names))
    return table


def _title(summaries: Sequence[Summary]) -> str:
    title = f"{len(summaries)} run{'s' * (len(summaries) != 1)}, the best of each metric"
    num = sum(one.is_generated for one in summaries)
    which = "" if num == len(summaries) else f"{num} of them "
    return f"{title} ({which}{GENERATED})" if num else title


def _cells(one: Summary, metrics: Sequence[str], names: Mapping[str, str]) -> Iterator[Text]:
    yield Text(printable(one.name))
    yield Text(printable(one.status), style=_STYLES.get(one.status, ""))
    yield Text(_age(one.age_s))
    yield Text("" if one.last_batch is None else str(one.last_batch))
    for name in metrics:
        yield Text(metric_text(name, one.best[name].value) if name in one.best else "")
    yield _finding(one)
    settings = one.settings
    yield Text(
        " ".join(f"{printable(names[name])}={_setting_text(settings[name])}" for name in names if name in settings)
    )


def _finding(one: Summary) -> Text:
    if one.problem is not None:
        return Text(printable(one.problem.replace(f"{one.path}/", "")), style="red")
    if one.finding is None:
        return Text(one.verdict or "", style="green" if one.verdict == "healthy" else "")
    column = f" {one.finding.column}" if one.finding.column else ""
    told = f"{one.finding.sign}{column} at batch {one.finding.batch_idx}"
    more = f" and {one.num_findings - 1} more" if one.num_findings and one.num_findings > 1 else ""
    return Text(printable(told + more), style=_SEVERITY.get(one.finding.severity, ""))


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in _UNITS_S:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _setting_text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else printable(str(value))
