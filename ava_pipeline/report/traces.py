"""Series as plotly's traces: the line, what is not finite, what is 0, and points that stand alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.read.arrays import BatchIndices
from ava_pipeline.report.figure import Trace, plain
from ava_pipeline.report.series import Points, Series, Thinned
from ava_pipeline.report.style import Style

_HOVER = "%{y:.4g}<extra>%{fullData.name}</extra>"
_HOVER_OF_SLICE = "median %{y:.4g}, %{customdata[0]:.4g} to %{customdata[1]:.4g}<extra>%{fullData.name}</extra>"
_FAINT, _HALF = "40", "99"  # opacity, in hexadecimal
_FEW = 200
_WIDTH = 1.6
_MOST_INT32 = np.iinfo(np.int32).max


def traces_of(
    series: Series,
    num_slices: int,
    *,
    name: str,
    look: Style,
    bounds: tuple[float, float],
    axes: dict[str, str],
) -> Iterator[Trace]:
    """What is drawn of one series.

    Args:
        series: what to draw.
        num_slices: in so many slices.
        name: of the run or column.
        look: of the line.
        bounds: the places below and above all values, where 0 and what is not finite are marked.
        axes: plotly's names of the axes.
    """
    found = series.line(num_slices)
    points = found.middle
    line = {"color": look.color, "dash": look.dash, "width": _WIDTH}
    mode = "lines+markers" if len(points.values) <= _FEW else "lines"
    shared = {"type": "scatter", "name": plain(name), "legendgroup": name, **axes}
    if not found.is_whole:
        yield shared | _envelope(found, look.color)
    hover = {"hovertemplate": _HOVER} if found.is_whole else _range_of(found)
    yield shared | hover | {"mode": mode, "line": line, "marker": {"size": 4, "symbol": look.symbol}} | _xy(points)
    alone = _alone(points)
    if mode == "lines" and len(alone.values):
        marker = {"size": 3, "color": look.color, "symbol": look.symbol}
        yield shared | {"mode": "markers", "marker": marker, "hoverinfo": "skip"} | _xy(alone)
    marks = (
        ("not finite", series.not_finite(num_slices), bounds[1], "x"),
        ("0", series.zeros(num_slices), bounds[0], "triangle-down-open"),
    )
    for what, marked, height, symbol in marks:
        if len(marked.values):
            yield shared | _marks(marked, height, symbol, look.color, plain(f"{name}: {what}"))


def bounds_of(series: Sequence[Series]) -> tuple[float, float]:
    """Places below and above every value that is drawn, a little apart."""
    is_log = all(one.is_log for one in series)
    parts = [one.values[np.isfinite(one.values) & ((one.values > 0) | (not is_log))] for one in series]
    shown = np.concatenate([np.empty(0), *parts])
    if not len(shown):
        return 0.1, 1.0
    low, high = float(shown.min()), float(shown.max())
    apart = (high - low) / 20
    return (low / 1.5, high * 1.5) if is_log else (low - apart, high + apart)


def _envelope(found: Thinned, color: str) -> Trace:
    """All between the lowest and the highest values, a polygon a piece, edged so that a spike of one row is seen."""
    upper, lower = found.highest, found.lowest
    pieces = _pieces(upper.values)
    edge = {"width": 1, "color": f"{color}{_HALF}"}
    shown = {"mode": "lines", "fill": "toself", "fillcolor": f"{color}{_FAINT}", "line": edge, "hoverinfo": "skip"}
    x = [part for piece in pieces for part in (upper.batches[piece], _closing(lower.batches[piece]))]
    y = [part for piece in pieces for part in (upper.values[piece], lower.values[piece][::-1], [np.nan])]
    return shown | {"x": _compact(np.concatenate(x)), "y": _compact(np.concatenate(y))}


def _closing(batches: BatchIndices) -> BatchIndices:
    """The way back, and once more its end, for the nan there."""
    return np.append(batches[::-1], batches[0])


def _pieces(values: NDArray[np.float64]) -> list[slice]:
    """The stretches between the nans."""
    edges = np.flatnonzero(np.diff(np.isfinite(values).astype(np.int8), prepend=0, append=0))
    return [slice(first, end) for first, end in edges.reshape(-1, 2)]


def _range_of(found: Thinned) -> Trace:
    """What is told of a slice's median: the lowest and the highest value beside it."""
    beside = np.column_stack([_compact(found.lowest.values), _compact(found.highest.values)])
    return {"customdata": beside, "hovertemplate": _HOVER_OF_SLICE}


def _marks(marked: Points, height: float, symbol: str, color: str, name: str) -> Trace:
    return {
        "mode": "markers",
        "name": name,
        "marker": {"symbol": symbol, "size": 9, "color": color, "line": {"width": 1.5}},
        "text": [plain(value) for value in marked.values],
        "hovertemplate": "%{text} at batch %{x}<extra>%{fullData.name}</extra>",
        "x": _compact(marked.batches),
        "y": np.full(len(marked.batches), height),
    }


def _xy(points: Points) -> Trace:
    return {"x": _compact(points.batches), "y": _compact(points.values)}


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """In four bytes each, where no eye sees a difference; plotly.js knows no int64."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int32 if values.size == 0 or values.max() <= _MOST_INT32 else np.float64)
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    fits = np.isfinite(narrow) == np.isfinite(values)
    return narrow if fits.all() and ((narrow == 0) == (values == 0)).all() else values


def _alone(points: Points) -> Points:
    """Points with nothing on either side, which no line shows."""
    is_there = np.isfinite(points.values)
    padded = np.pad(is_there, 1)
    alone = is_there & ~padded[:-2] & ~padded[2:]
    return Points(points.batches[alone], points.values[alone])
