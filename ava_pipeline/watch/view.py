"""A followed run as text: its status, its latest events, and each column as a line of bars."""

from collections.abc import Iterator
from datetime import datetime
from textwrap import wrap

import numpy as np
import pyarrow as pa
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ava_pipeline.contract.arrays import Bools, Floats, integers
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.read.old_run import ORIGIN
from ava_pipeline.terminal import printable
from ava_pipeline.watch.columns import shown_columns
from ava_pipeline.watch.live_run import EVENTS_TABLE, METRICS_TABLE, Columns, LatestRows, LiveRun

BARS = "▁▂▃▄▅▆▇█"
NOT_FINITE, ZERO, NOT_MEASURED = "!", "_", " "

_TITLES = {
    "gradient_norms": "gradient norm",
    "learning_rates": "learning rate",
    "steps": "value",
    "metrics": "metric",
    "weight_deltas": "update ratio",
    "batch_stats": "labels",
    "holdout_predictions": "held-out samples",
}
_NO_MANIFEST = "no manifest yet"
_HINTS = {
    "running": "Ctrl-C leaves it running.",
    "finished": "The run is complete.",
    "unknown": "Another program wrote it; Ctrl-C ends this.",
    _NO_MANIFEST: "Waiting for its first row; Ctrl-C ends this.",
}
_HINT = "Waiting until it is resumed; Ctrl-C ends this."
_STYLES = {"running": "cyan", "finished": "green", "info": "cyan", "warning": "yellow", "error": "red"}
_MAX_EVENTS, _MAX_EVENTS_OF_LOW_TERMINAL, _LOW_TERMINAL_LINES = 5, 3, 30
_NUM_ROWS_FOR_RATE = 50
_NAME_WIDTH, _LAST_WIDTH, _RANGE_WIDTH, _GAP_WIDTH = 17, 9, 21, 2
_MIN_BARS, _MAX_BARS = 16, 80
_HEADER_LINES = 2
_UNITS_S = ((86_400, "d"), (3_600, "h"), (60, "min"))


def view(live_run: LiveRun, now: datetime, width: int, height: int | None = None) -> RenderableType:
    """Render status, progress, problems and the latest events, then as many columns as fit into `height` lines."""
    above = [_title(live_run)]
    if live_run.manifest is not None:
        above += map(Text, wrap(_progress(live_run, live_run.manifest, now), width))
    if live_run.problem:
        above += [Text(""), *(Text(line, style="red") for line in wrap(printable(live_run.problem), width))]
    if EVENTS_TABLE in live_run.tables:
        is_low = height is not None and height <= _LOW_TERMINAL_LINES
        most = _MAX_EVENTS_OF_LOW_TERMINAL if is_low else _MAX_EVENTS
        above += [Text("\nlatest events", style="bold"), *_event_lines(live_run.tables[EVENTS_TABLE], most)]
    columns = shown_columns(live_run)
    num_columns = {name: len(found) for name, found in columns.items()}
    if height is not None:
        num_lines = len(above) + sum(text.plain.count("\n") for text in above)
        num_columns = _fitting(num_columns, height - num_lines)
    return Group(*above, *(_table(name, found, num_columns[name], width) for name, found in columns.items()))


def sparkline(values: Floats, is_null: Bools, width: int) -> str:
    """The greatest value of each range of rows as a bar on a logarithmic scale, the latest at the right.

    A range that contains nan or inf is `!`, one of zeros only is `_`, and one without measured values is a space.
    `values` and `is_null` are [rows], oldest first; `width` is the greatest number of characters.
    """
    if not len(values):
        return ""
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log(positive.min()), np.log(positive.max())) if len(positive) else (0.0, 0.0)
    ranges = np.array_split(np.arange(len(values)), min(width, len(values)))
    return "".join(_bar(values[rows][~is_null[rows]], float(low), float(high)) for rows in ranges)


def _bar(values: Floats, low: float, high: float) -> str:
    if not len(values):
        return NOT_MEASURED
    if not np.isfinite(values).all():
        return NOT_FINITE
    greatest = float(values.max())
    if greatest <= 0:
        return ZERO
    share = (np.log(greatest) - low) / (high - low) if high > low else 0.5
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]


def _title(live_run: LiveRun) -> Text:
    status = live_run.status or _NO_MANIFEST
    origin = f" ({ORIGIN})" if live_run.run.old is not None else ""
    name = printable(live_run.run.layout.root.resolve().name)
    hint = _HINTS.get(status, _HINT)
    return _one_line((name, "bold"), "  ", (status, _STYLES.get(status, "red")), f"{origin}  {hint}")


def _one_line(*parts: str | tuple[str, str]) -> Text:
    """Text that a narrow terminal cuts off instead of wrapping it."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _progress(live_run: LiveRun, manifest: Manifest, now: datetime) -> str:
    steps = live_run.tables.get("steps")
    counters = manifest.attempt.counters if manifest.attempts else None
    parts = [
        *_position(live_run),
        *(_rate(steps.rows, now) if steps is not None and steps.rows is not None else ()),
        f"last sign of life {_ago(manifest.heartbeat_utc, now)}",
    ]
    if counters is not None:
        parts.append(f"attempt {manifest.attempt.number}: {counters.written} of {counters.collected} steps written")
    if counters is not None and (counters.dropped or counters.failed):
        parts.append(f"{counters.dropped} dropped, {counters.failed} failed")
    return " · ".join(parts)


def _position(live_run: LiveRun) -> Iterator[str]:
    tables = (latest.rows for name, latest in live_run.tables.items() if name not in {EVENTS_TABLE, METRICS_TABLE})
    rows = next((rows for rows in tables if rows is not None), None)
    if rows is not None:
        place = live_run.run.place_text(rows["batch_idx"][-1].as_py())
        yield from [] if place.startswith("epoch") else [f"epoch {rows['epoch'][-1]}"]
        yield place


def _rate(rows: pa.Table, now: datetime) -> Iterator[str]:
    if "time_utc" not in rows.column_names:
        return
    late = rows.slice(max(0, rows.num_rows - _NUM_ROWS_FOR_RATE))
    times, batches = late["time_utc"].to_numpy(), integers(late, "batch_idx")
    seconds = (times[-1] - times[0]) / np.timedelta64(1, "s")
    if seconds > 0:
        yield f"{(batches[-1] - batches[0]) / seconds:.3g} batches/s"
    latest: datetime = late["time_utc"][-1].as_py()
    yield f"last row {_ago(latest, now)}"


def _ago(time: datetime, now: datetime) -> str:
    seconds = max(0.0, (now - time).total_seconds())
    for size, unit in _UNITS_S:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _event_lines(latest: LatestRows, most: int) -> Iterator[Text]:
    """A line for each event, the newest first: the first sentence of its message, without the advice."""
    rows = latest.rows
    if rows is None:
        yield Text("none", style="dim")
        return
    for row in reversed(rows.slice(max(0, rows.num_rows - most)).to_pylist()):
        event = (printable(str(row["event"])), _STYLES.get(str(row["severity"]), ""))
        sentence, _, _ = str(row["message"]).partition(". ")
        yield _one_line(f"batch {row['batch_idx']}  ", event, f"  {printable(sentence)}")


def _fitting(num_columns: dict[str, int], num_lines: int) -> dict[str, int]:
    """The number of columns to show of each table: the longest table is shortened until all tables fit."""
    shown = dict(num_columns)
    while sum(shown.values()) + _HEADER_LINES * len(shown) > num_lines and max(shown.values(), default=0) > 1:
        longest = max(shown, key=lambda name: shown[name])
        shown[longest] -= 1
    return shown


def _table(name: str, columns: Columns, num_shown: int, width: int) -> Table:
    """The last value, the bars and the range of each column; a narrow terminal shows no range."""
    left = width - _NAME_WIDTH - _LAST_WIDTH - 2 * _GAP_WIDTH
    has_range = left - _RANGE_WIDTH - _GAP_WIDTH >= _MIN_BARS
    num_bars = max(1, min(_MAX_BARS, left - (_RANGE_WIDTH + _GAP_WIDTH if has_range else 0)))
    num_hidden = len(columns) - num_shown
    table = Table(box=None, pad_edge=False, padding=(0, _GAP_WIDTH, 0, 0), title_justify="left")
    title = _TITLES.get(name, printable(name))
    table.add_column(Text(f"\n{title}"), no_wrap=True, width=_NAME_WIDTH, overflow="ellipsis")
    table.add_column("\nlast", justify="right", no_wrap=True, width=_LAST_WIDTH)
    table.add_column(Text(f"\n{num_hidden} more" if num_hidden else "", style="dim"), no_wrap=True, width=num_bars)
    if has_range:
        table.add_column("\nrange", no_wrap=True)
    for column, (values, is_null) in list(columns.items())[:num_shown]:
        cells = (_last(values, is_null), _bars(values, is_null, num_bars), _range(values))
        table.add_row(printable(column), *(cells if has_range else cells[:-1]))
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
