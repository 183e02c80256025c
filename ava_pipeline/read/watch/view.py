"""A watched run as rich shows it."""

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pyarrow as pa
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.printed import plain
from ava_pipeline.read.arrays import Bools, integers
from ava_pipeline.read.downsample import Floats
from ava_pipeline.read.watch.recent import Recent
from ava_pipeline.read.watch.sparkline import sparkline
from ava_pipeline.read.watch.watched import EVENTS_TABLE, Watched

_TITLES = {"gradient_norms": "gradient norm", "learning_rates": "learning rate", "steps": "value"}
_STYLES = {"running": "cyan", "finished": "green", "info": "cyan", "warning": "yellow", "error": "red"}
_NUM_EVENTS = 5
_NUM_PACE = 50
_NAME, _LAST = 17, 8
_AROUND_BARS = _NAME + _LAST + 24
_LEAST_BARS, _MOST_BARS = 8, 80
_SECONDS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def view(watched: Watched, now: datetime, width: int) -> RenderableType:
    """Everything that is shown.

    Args:
        watched: the run.
        now: the time of day, in UTC.
        width: of the terminal, in characters.
    """
    parts: list[RenderableType] = [_title(watched)]
    if watched.manifest is not None:
        parts.append(Text(_progress(watched, watched.manifest, now)))
    bars = max(_LEAST_BARS, min(_MOST_BARS, width - _AROUND_BARS))
    parts += [_table(name, recent, bars) for name, recent in watched.tables.items() if name != EVENTS_TABLE]
    if EVENTS_TABLE in watched.tables:
        parts.append(Group(Text("\nlatest events", style="bold"), *_events(watched.tables[EVENTS_TABLE])))
    if watched.trouble:
        parts.append(Text(f"\n{plain(watched.trouble)}", style="red"))
    return Group(*parts)


def _title(watched: Watched) -> Text:
    status = watched.status or "no manifest yet"
    name = plain(watched.run.layout.root.resolve().name)
    return Text.assemble((name, "bold"), "  ", (status, _STYLES.get(status, "red")), f"  {_way_on(status)}")


def _way_on(status: str) -> str:
    ways = {"running": "Ctrl-C leaves it running.", "finished": "Nothing more will come."}
    return ways.get(status, "Waiting until it is resumed; Ctrl-C ends this.")


def _progress(watched: Watched, manifest: Manifest, now: datetime) -> str:
    steps = watched.tables.get("steps")
    counters = manifest.attempt.counters if manifest.attempts else None
    told = [
        *_reached(watched),
        *(_pace(steps.rows, now) if steps is not None and steps.rows is not None else ()),
        f"last sign of life {_ago(manifest.heartbeat_utc, now)}",
    ]
    if counters is not None:
        told.append(f"attempt {manifest.attempt.number}: {counters.written} of {counters.collected} steps written")
    if counters is not None and (counters.dropped or counters.failed):
        told.append(f"{counters.dropped} dropped, {counters.failed} failed")
    return " · ".join(told)


def _reached(watched: Watched) -> Iterator[str]:
    rows = next((one.rows for name, one in watched.tables.items() if name != EVENTS_TABLE and one.rows), None)
    if rows is not None:
        yield f"epoch {rows['epoch'][-1]}"
        yield f"batch {rows['batch_idx'][-1]}"


def _pace(rows: pa.Table, now: datetime) -> Iterator[str]:
    """Batches a second over the last rows, and how old the last one is."""
    if "time_utc" not in rows.column_names:
        return
    late = rows.slice(max(0, rows.num_rows - _NUM_PACE))
    times, batches = late["time_utc"].to_numpy(), integers(late, "batch_idx")
    seconds = (times[-1] - times[0]) / np.timedelta64(1, "s")
    if seconds > 0:
        yield f"{(batches[-1] - batches[0]) / seconds:.3g} batches/s"
    latest: datetime = late["time_utc"][-1].as_py()
    yield f"last row {_ago(latest, now)}"


def _table(name: str, recent: Recent, bars: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column(Text(f"\n{_TITLES.get(name, plain(name))}"), no_wrap=True, width=_NAME, overflow="ellipsis")
    table.add_column("\nlast", justify="right", no_wrap=True, min_width=_LAST)
    table.add_column("", no_wrap=True, width=bars)
    table.add_column("\nrange", no_wrap=True)
    for column, (values, is_null) in recent.columns().items():
        if not is_null.all():
            table.add_row(plain(column), _last(values, is_null), _bars(values, is_null, bars), _range(values))
    return table


def _last(values: Floats, is_null: Bools) -> Text:
    if is_null[-1]:
        return Text("–", style="dim")  # noqa: RUF001  # a dash, on purpose
    return Text(f"{values[-1]:.3g}", style="" if np.isfinite(values[-1]) else "red")


def _bars(values: Floats, is_null: Bools, width: int) -> Text:
    text = Text(sparkline(values, is_null, width), style="blue")
    text.highlight_regex("!+", "bold red")
    return text


def _range(values: Floats) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.3g} … {finite.max():.3g}" if len(finite) else ""


def _events(recent: Recent) -> Iterator[Text]:
    rows = recent.rows
    if rows is None:
        yield Text("none", style="dim")
        return
    for row in reversed(rows.slice(max(0, rows.num_rows - _NUM_EVENTS)).to_pylist()):
        severity = str(row["severity"])
        what = (f"{plain(str(row['event']))}", _STYLES.get(severity, ""))
        yield Text.assemble(f"batch {row['batch_idx']}  ", what, f"  {plain(str(row['message']))}", overflow="fold")


def _ago(time: datetime, now: datetime) -> str:
    seconds = max(0.0, (now - time).total_seconds())
    for size, unit in _SECONDS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.0f} s ago"
