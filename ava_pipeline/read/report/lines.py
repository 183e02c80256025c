"""Series as plotly's traces: the line, what is not finite, what is 0, and points that stand alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.read.downsample import Points
from ava_pipeline.read.report.drawn import Trace, plain
from ava_pipeline.read.report.looks import Look
from ava_pipeline.read.report.series import Series

_HOVER = "%{y:.4g}<extra>%{fullData.name}</extra>"
_FEW = 200
_WIDTH = 1.6
_MOST_INT32 = np.iinfo(np.int32).max


def traces_of(
    series: Series,
    num_slices: int,
    *,
    name: str,
    look: Look,
    bounds: tuple[float, float],
    axes: dict[str, str],
) -> Iterator[Trace]:
    """What is drawn of one series .

    Args:
        series: what to draw.
        num_slices: in so many slices.
        name: of the run or column.
        look: of the line.
        bounds: the places below and above all values, where 0 and what is not finite are marked.
        axes: plotly's names of the axes.
    """
    points = series.line(num_slices)
    line = {"color": look.color, "dash": look.dash, "width": _WIDTH}
    mode = "lines+markers" if len(points.values) <= _FEW else "lines"
    shared = {"type": "scatter", "name": plain(name), "legendgroup": name, **axes}
    yield (
        shared
        | {"mode": mode, "line": line, "marker": {"size": 4, "symbol": look.symbol}, "hovertemplate": _HOVER}
        | _xy(points)
    )
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
