"""A column as one line of text."""

from collections.abc import Iterator
from datetime import datetime
from textwrap import wrap
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.read.arrays import Bools, Floats, integers
from ava_pipeline.terminal import printable
from ava_pipeline.watch.live_run import EVENTS_TABLE, LatestRows, LiveRun

BARS = "▁▂▃▄▅▆▇█"
NOT_FINITE, ZERO, NOT_MEASURED = "!", "_", " "


def sparkline(values: Floats, is_null: Bools, width: int) -> str:
    """The greatest value of each stretch of rows as a bar on a logarithmic scale, the latest at the right.

    A stretch with nan or inf in it is `!`, one of nothing but 0 is `_`, one in which nothing was measured is empty.

    Args:
        values: [rows], oldest first.
        is_null: [rows] nothing was measured.
        width: at most so many characters.
    """
    if not len(values):
        return ""
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log(positive.min()), np.log(positive.max())) if len(positive) else (0.0, 0.0)
    parts = np.array_split(np.arange(len(values)), min(width, len(values)))
    return "".join(_cell(values[part][~is_null[part]], float(low), float(high)) for part in parts)


def _cell(values: Floats, low: float, high: float) -> str:
    if not len(values):
        return NOT_MEASURED
    if not np.isfinite(values).all():
        return NOT_FINITE
    greatest = float(values.max())
    if greatest <= 0:
        return ZERO
    share = (np.log(greatest) - low) / (high - low) if high > low else 0.5
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]


Columns: TypeAlias = dict[str, tuple[Floats, Bools]]

_TITLES = {"gradient_norms": "gradient norm", "learning_rates": "learning rate", "steps": "value"}
_NO_MANIFEST = "no manifest yet"
_STYLES = {"running": "cyan", "finished": "green", "info": "cyan", "warning": "yellow", "error": "red"}
_NUM_EVENTS, _NUM_EVENTS_OF_FEW_LINES, _FEW_LINES = 5, 3, 30
_NUM_PACE = 50
_NAME, _LAST, _RANGE, _GAP = 17, 9, 21, 2
_LEAST_BARS, _MOST_BARS = 16, 80
_HEADER_LINES = 2
_SECONDS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def view(watched: LiveRun, now: datetime, width: int, height: int | None = None) -> RenderableType:
    """Everything that is shown: what happened first, since it may matter most, then as many columns as there is room.

    Args:
        watched: the run.
        now: the time of day, in UTC.
        width: of the terminal, in characters.
        height: of it, in lines; None shows every column.
    """
    above = [_title(watched)]
    if watched.manifest is not None:
        above += map(Text, wrap(_progress(watched, watched.manifest, now), width))
    if watched.trouble:
        above += [Text(""), *(Text(line, style="red") for line in wrap(printable(watched.trouble), width))]
    if EVENTS_TABLE in watched.tables:
        most = _NUM_EVENTS if height is None or height > _FEW_LINES else _NUM_EVENTS_OF_FEW_LINES
        above += [Text("\nlatest events", style="bold"), *_events(watched.tables[EVENTS_TABLE], most)]
    columns = {name: _measured(recent) for name, recent in watched.tables.items() if name != EVENTS_TABLE}
    num_lines = len(above) + sum(text.plain.count("\n") for text in above)
    room = _rooms({name: len(found) for name, found in columns.items()}, None if height is None else height - num_lines)
    return Group(*above, *(_table(name, found, room[name], width) for name, found in columns.items()))


def _measured(recent: LatestRows) -> Columns:
    return {name: found for name, found in recent.columns().items() if not found[1].all()}


def _rooms(wanted: dict[str, int], height: int | None) -> dict[str, int]:
    """How many columns of each table are shown: of the longest ones fewer, until all tables fit."""
    room = dict(wanted)
    while (
        height is not None
        and sum(room.values()) + _HEADER_LINES * len(room) > height
        and max(room.values(), default=0) > 1
    ):
        longest = max(room, key=lambda name: room[name])
        room[longest] -= 1
    return room


def _title(watched: LiveRun) -> Text:
    status = watched.status or _NO_MANIFEST
    name = printable(watched.run.layout.root.resolve().name)
    told = Text.assemble((name, "bold"), "  ", (status, _STYLES.get(status, "red")), f"  {_way_on(status)}")
    told.no_wrap, told.overflow = True, "ellipsis"
    return told


def _way_on(status: str) -> str:
    ways = {
        "running": "Ctrl-C leaves it running.",
        "finished": "Nothing more will come.",
        _NO_MANIFEST: "Waiting for its first row; Ctrl-C ends this.",
    }
    return ways.get(status, "Waiting until it is resumed; Ctrl-C ends this.")


def _progress(watched: LiveRun, manifest: Manifest, now: datetime) -> str:
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


def _reached(watched: LiveRun) -> Iterator[str]:
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


def _table(name: str, columns: Columns, num_shown: int, width: int) -> Table:
    """As many bars as the width leaves; where these are too few, no range."""
    left = width - _NAME - _LAST - 2 * _GAP
    has_range = left - _RANGE - _GAP >= _LEAST_BARS
    bars = max(1, min(_MOST_BARS, left - (_RANGE + _GAP if has_range else 0)))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), title_justify="left")
    title = _TITLES.get(name, printable(name))
    hidden = len(columns) - num_shown
    table.add_column(Text(f"\n{title}"), no_wrap=True, width=_NAME, overflow="ellipsis")
    table.add_column("\nlast", justify="right", no_wrap=True, width=_LAST)
    table.add_column(Text(f"\n{hidden} more" if hidden else "", style="dim"), no_wrap=True, width=bars)
    if has_range:
        table.add_column("\nrange", no_wrap=True)
    for column, (values, is_null) in list(columns.items())[:num_shown]:
        last, range_told = _last(values, is_null), (_range(values),) if has_range else ()
        table.add_row(printable(column), last, _bars(values, is_null, bars), *range_told)
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


def _events(recent: LatestRows, most: int) -> Iterator[Text]:
    """A line each, the newest first: what was seen, without what to try."""
    rows = recent.rows
    if rows is None:
        yield Text("none", style="dim")
        return
    for row in reversed(rows.slice(max(0, rows.num_rows - most)).to_pylist()):
        what = (printable(str(row["event"])), _STYLES.get(str(row["severity"]), ""))
        seen, _, _ = str(row["message"]).partition(". ")
        line = Text.assemble(f"batch {row['batch_idx']}  ", what, f"  {printable(seen)}")
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def _ago(time: datetime, now: datetime) -> str:
    seconds = max(0.0, (now - time).total_seconds())
    for size, unit in _SECONDS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.0f} s ago"
