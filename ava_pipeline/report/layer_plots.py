"""The heat map of gradient norms, layer by batch: where does a network learn?"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.report.figure import Figure, TextTable, Trace, label_text, number_text
from ava_pipeline.report.layer_norms import LayerNorms
from ava_pipeline.report.run_data import RunData

_MAX_CELLS = 26_000  # of all heat maps of a page
_ROW_PX, _MIN_ROW_PX, _MAX_ROWS_PX, _MARGINS_PX = 13, 3, 2600, 110
_BAR_PX = 220
# Viridis without its darkest part, which a dark page would hide. Source: https://bids.github.io/colormap/
_COLORS = ("#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
_ZERO_COLOR, _NOT_FINITE_COLOR = "#9a9a9a", "#d6336c"
_BAND = 0.05  # of the colour scale, for what is not a positive number
_MAX_TICKS = 6
_DIGITS = 3


class _Scale(NamedTuple):
    """A logarithmic colour scale, with a band below for 0 and one above for what is not finite."""

    low: float  # of the logarithms, base 10
    high: float
    band: float

    @property
    def zero(self) -> float:
        """In the middle of the band below."""
        return self.low - 1.5 * self.band

    @property
    def not_finite(self) -> float:
        """In the middle of the band above."""
        return self.high + 1.5 * self.band


def layer_figures(runs: Sequence[RunData]) -> Iterator[Figure]:
    """A heat map for each run that measured the gradients of its layers."""
    measured = [(run.name, run.layers) for run in runs if run.layers is not None]
    for index, (name, layers) in enumerate(measured):
        most = _MAX_CELLS // len(measured) // len(layers.layers)
        figure_name = "layers" if len(measured) == 1 else f"layers-{index}"
        title = "Gradient norms by layer" if len(runs) == 1 else f"{name}: gradient norms by layer"
        yield _figure(figure_name, title, layers.reduced(most))


def _figure(name: str, title: str, layers: LayerNorms) -> Figure:
    norms = layers.norms()
    scale = _scale(norms)
    row_px = max(_MIN_ROW_PX, min(_ROW_PX, _MAX_ROWS_PX // len(layers.layers)))
    height = max(_BAR_PX, row_px * len(layers.layers)) + _MARGINS_PX
    return Figure(
        name=name,
        title=title,
        caption=_caption(layers),
        label=_label(title, layers, norms),
        traces=[_heat_map(layers, norms, scale)],
        layout={
            "height": height,
            "margin": {"l": 56, "r": 14, "t": 26, "b": 44},
            "hovermode": "closest",
            "xaxis": {"title": {"text": "batch"}, "showgrid": False},
            "yaxis": {
                "type": "category",
                "autorange": "reversed",
                "showgrid": False,
                "tickfont": {"size": 10},
                "tickmode": "linear",
                "tick0": 0,
                "dtick": max(1, math.ceil(_ROW_PX / row_px)),
            },
        },
        table=_table(layers, norms),
        is_by_batch=True,
    )


def _caption(layers: LayerNorms) -> str:
    num = layers.batches_per_column
    several = (
        f" A cell is {num} collected steps: the geometric mean of their norms above 0. It is 0 only if all are, "
        "and not finite if any is."
        if num > 1
        else ""
    )
    more = (
        f" The first {len(layers.layers)} layers are shown; there are {layers.num_left_out} more or above."
        if layers.num_left_out
        else ""
    )
    return (
        "Where does it learn? The norm of each parameter tensor's gradient, in the model's order from top to bottom, "
        "on a logarithmic colour scale. Grey is 0, red nan or inf, and a cell without colour was not measured."
        f"{several}{more}"
    )


def _scale(norms: Floats) -> _Scale:
    positive = norms[np.isfinite(norms) & (norms > 0)]
    low, high = (math.log10(positive.min()), math.log10(positive.max())) if len(positive) else (-1.0, 0.0)
    if high - low < 1:  # a scale of one colour would show differences that are none
        low, high = (low + high) / 2 - 0.5, (low + high) / 2 + 0.5
    return _Scale(low, high, _BAND * (high - low))


def _heat_map(layers: LayerNorms, norms: Floats, scale: _Scale) -> Trace:
    """One trace: plotly's colour scale has the bands for 0 and for what is not finite, if there are any."""
    has_zero, has_not_finite = bool((norms == 0).any()), bool(np.isinf(norms).any())
    with np.errstate(divide="ignore"):
        heights = np.log10(norms)
    heights = np.where(norms == 0, scale.zero, np.where(np.isinf(norms), scale.not_finite, heights))
    bottom = scale.low - 2 * scale.band if has_zero else scale.low
    top = scale.high + 2 * scale.band if has_not_finite else scale.high
    return {
        "type": "heatmap",
        "x": _edges(layers),
        "y": _unique([label_text(name) for name in layers.layers]),
        "z": heights.astype(np.float32),
        "customdata": _texts(norms),
        "hovertemplate": "%{y}<br>batch %{x}: %{customdata}<extra></extra>",
        "hoverongaps": False,
        "zmin": bottom,
        "zmax": top,
        "colorscale": _colors(scale, bottom, top),
        "colorbar": _bar(scale, has_zero=has_zero, has_not_finite=has_not_finite),
    }


def _edges(layers: LayerNorms) -> list[float]:
    """Where the columns begin and the last one ends, so that each is drawn around its batches."""
    starts = layers.starts.tolist()
    spacing = max(1, layers.last_batch - starts[-1], *np.diff(layers.starts[-2:]).tolist())
    return [*starts, starts[-1] + spacing]


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with the number of the layer behind those that are alike once shortened."""
    num = Counter(names)
    return [name if num[name] == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]


def _texts(norms: Floats) -> list[list[float | str | None]]:
    """What a hover text shows of each cell: the norm with three digits; JSON has no inf."""
    return [
        [None if np.isnan(norm) else "not finite" if np.isinf(norm) else float(f"{norm:.{_DIGITS}g}") for norm in row]
        for row in norms.tolist()
    ]


def _colors(scale: _Scale, bottom: float, top: float) -> list[list[Any]]:
    def share(height: float) -> float:
        return min(1.0, max(0.0, (height - bottom) / (top - bottom)))

    first, last = share(scale.low), share(scale.high)
    steps = np.linspace(first, last, len(_COLORS)).tolist()
    colors: list[list[Any]] = [[step, color] for step, color in zip(steps, _COLORS, strict=True)]
    if bottom < scale.low:
        edge = share(scale.low - scale.band)
        colors = [[0.0, _ZERO_COLOR], [edge, _ZERO_COLOR], [edge, _COLORS[0]], *colors]
    if top > scale.high:
        edge = share(scale.high + scale.band)
        colors = [*colors, [edge, _COLORS[-1]], [edge, _NOT_FINITE_COLOR], [1.0, _NOT_FINITE_COLOR]]
    return colors


def _bar(scale: _Scale, *, has_zero: bool, has_not_finite: bool) -> dict[str, Any]:
    powers = range(math.ceil(scale.low), math.floor(scale.high) + 1)
    powers = powers[:: max(1, math.ceil(len(powers) / _MAX_TICKS))]
    ticks = [(float(power), f"1e{power}" if power else "1") for power in powers]
    ticks += [(scale.zero, "0")] if has_zero else []
    ticks += [(scale.not_finite, "not finite")] if has_not_finite else []
    place = {"orientation": "v", "lenmode": "pixels", "len": _BAR_PX, "yanchor": "top", "y": 1, "thickness": 14}
    return place | {
        "tickmode": "array",
        "tickvals": [value for value, _ in ticks],
        "ticktext": [text for _, text in ticks],
    }


def _table(layers: LayerNorms, norms: Floats) -> TextTable:
    """Of each layer, the median over the first and the last quarter of the columns, and the lowest and highest norm."""
    rows = [
        [name, number_text(_early(row)), number_text(_late(row)), f"{_text(row, np.fmin)} to {_text(row, np.fmax)}"]
        for name, row in zip(layers.layers, norms, strict=True)
    ]
    return TextTable(["layer", "median of the first quarter", "of the last quarter", "lowest to highest"], rows)


def _early(row: Floats) -> float | None:
    return _median(row[: _quarter(row)])


def _late(row: Floats) -> float | None:
    return _median(row[-_quarter(row) :])


def _quarter(row: Floats) -> int:
    return -(-len(row) // 4)


def _median(values: Floats) -> float | None:
    measured = np.sort(values[~np.isnan(values)])
    return float(measured[len(measured) // 2]) if len(measured) else None


def _text(row: Floats, pick: np.ufunc) -> str:
    extreme = float(pick.reduce(row))  # nan if nothing was measured
    return number_text(None if np.isnan(extreme) else extreme)


def _label(title: str, layers: LayerNorms, norms: Floats) -> str:
    known = {name: median for name, row in zip(layers.layers, norms, strict=True) if (median := _late(row)) is not None}
    place = f"{title}, heat map of {len(layers.layers)} layers over batches {layers.starts[0]} to {layers.last_batch}."
    if not known:
        return f"{place} Nothing was measured in the last quarter."
    least, most = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    return (
        f"{place} In the last quarter, the smallest is {least} ({number_text(known[least])}), the largest {most} "
        f"({number_text(known[most])}), medians."
    )
