"""Series as plotly's traces: the line, the range around it, isolated points, zeros, and values that are not finite."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import BatchIndices, Floats
from ava_pipeline.report.figure import Style, Trace, label_text
from ava_pipeline.report.series import Points, ReducedLine, Series

_NAME = "<extra>%{fullData.name}</extra>"
_HOVER = f"%{{y:.4g}}{_NAME}"
_HOVER_OF_SPAN = f"%{{y:.4g}} over %{{customdata}} batches{_NAME}"
_HOVER_OF_SLICE = f"median %{{y:.4g}}, %{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}{_NAME}"
_HOVER_OF_SLICE_OF_SPANS = (
    f"median %{{y:.4g}} over %{{customdata[2]}} batches, %{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}{_NAME}"
)
_FILL_OPACITY, _EDGE_OPACITY = "40", "99"  # in hexadecimal
_MAX_POINTS_WITH_MARKERS = 200
_LINE_WIDTH_PX = 1.6
_MAX_INT32 = np.iinfo(np.int32).max


def traces_of(
    series: Series, num_slices: int, *, name: str, style: Style, bounds: tuple[float, float], axes: dict[str, str]
) -> Iterator[Trace]:
    """The traces that draw a series, reduced to `num_slices` slices if it is long.

    `name` is that of the run or the column; `axes` holds plotly's names of the axes. 0 and values that are not finite
    are marked at the heights `bounds`, below and above all values.
    """
    line = series.line(num_slices)
    points = line.middle
    mode = "lines+markers" if len(points.values) <= _MAX_POINTS_WITH_MARKERS else "lines"
    shared = {"type": "scatter", "name": label_text(name), "legendgroup": name, **axes}
    if not line.is_complete:
        yield shared | _range_area(line, style.color)
    yield (
        shared
        | _hover_of(series, line)
        | {"mode": mode, "line": {"color": style.color, "dash": style.dash, "width": _LINE_WIDTH_PX}}
        | {"marker": {"size": 4, "symbol": style.symbol}}
        | _xy(points)
    )
    isolated = _isolated_points(points)
    if mode == "lines" and len(isolated.values):
        marker = {"size": 3, "color": style.color, "symbol": style.symbol}
        yield shared | {"mode": "markers", "marker": marker, "hoverinfo": "skip"} | _xy(isolated)
    for what, marked, height, symbol in (
        ("not finite", series.not_finite(num_slices), bounds[1], "x"),
        ("0", series.zeros(num_slices), bounds[0], "triangle-down-open"),
    ):
        if len(marked.values):
            yield shared | _markers(marked, height, symbol, style.color, label_text(f"{name}: {what}"))


def bounds_of(series: Sequence[Series]) -> tuple[float, float]:
    """Heights a little below and above every value that is drawn."""
    is_log = all(column.is_log for column in series)
    drawn = [column.values[np.isfinite(column.values) & ((column.values > 0) | (not is_log))] for column in series]
    values = np.concatenate([np.empty(0), *drawn])
    if not len(values):
        return 0.1, 1.0
    low, high = float(values.min()), float(values.max())
    margin = (high - low) / 20
    return (low / 1.5, high * 1.5) if is_log else (low - margin, high + margin)


def _range_area(line: ReducedLine, color: str) -> Trace:
    """The area from the lowest to the highest values; its edge keeps a spike of a single row visible."""
    upper, lower = line.highest, line.lowest
    segments = _segments(upper.values)
    edge = {"width": 1, "color": f"{color}{_EDGE_OPACITY}"}
    area = {"mode": "lines", "fill": "toself", "fillcolor": f"{color}{_FILL_OPACITY}", "line": edge}
    x = [part for rows in segments for part in (upper.batches[rows], _backwards(lower.batches[rows]))]
    y = [part for rows in segments for part in (upper.values[rows], lower.values[rows][::-1], [np.nan])]
    return area | {"hoverinfo": "skip", "x": _compact(np.concatenate(x)), "y": _compact(np.concatenate(y))}


def _backwards(batches: BatchIndices) -> BatchIndices:
    """The batches from the last to the first, and the first once more for the nan that ends the polygon."""
    return np.append(batches[::-1], batches[0])


def _segments(values: Floats) -> list[slice]:
    """The ranges of rows between nans."""
    edges = np.flatnonzero(np.diff(np.isfinite(values).astype(np.int8), prepend=0, append=0))
    return [slice(first, end) for first, end in edges.reshape(-1, 2)]


def _hover_of(series: Series, line: ReducedLine) -> Trace:
    """The value of each point; of a slice also its range, and of values over several batches their number."""
    spans = None
    if series.num_batches is not None and len(series.batches):
        rows = np.minimum(np.searchsorted(series.batches, line.middle.batches), len(series.batches) - 1)
        spans = _compact(series.num_batches[rows])
    if line.is_complete:
        return {"hovertemplate": _HOVER} if spans is None else {"customdata": spans, "hovertemplate": _HOVER_OF_SPAN}
    low_high = [_compact(line.lowest.values), _compact(line.highest.values)]
    if spans is None:
        return {"customdata": np.column_stack(low_high), "hovertemplate": _HOVER_OF_SLICE}
    return {"customdata": np.column_stack([*low_high, spans]), "hovertemplate": _HOVER_OF_SLICE_OF_SPANS}


def _markers(marked: Points, height: float, symbol: str, color: str, name: str) -> Trace:
    return {
        "mode": "markers",
        "name": name,
        "marker": {"symbol": symbol, "size": 9, "color": color, "line": {"width": 1.5}},
        "text": [label_text(value) for value in marked.values],
        "hovertemplate": "%{text} at batch %{x}<extra>%{fullData.name}</extra>",
        "x": _compact(marked.batches),
        "y": np.full(len(marked.batches), height),
    }


def _xy(points: Points) -> Trace:
    return {"x": _compact(points.batches), "y": _compact(points.values)}


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """Four bytes for each value if the plot stays the same; plotly.js has no int64."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int32 if values.size == 0 or values.max() <= _MAX_INT32 else np.float64)
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    is_finite_alike = np.isfinite(narrow) == np.isfinite(values)
    return narrow if is_finite_alike.all() and ((narrow == 0) == (values == 0)).all() else values


def _isolated_points(points: Points) -> Points:
    """Points without a neighbour, which a line does not show."""
    is_finite = np.isfinite(points.values)
    padded = np.pad(is_finite, 1)
    is_isolated = is_finite & ~padded[:-2] & ~padded[2:]
    return Points(points.batches[is_isolated], points.values[is_isolated])
