"""Figures over batches: norms by group, the ratio of backbone to head, learning rates, values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ava_pipeline.report.annotations import Shape, bands, epoch_lines, epoch_names, findings_in
from ava_pipeline.report.figure import Figure, Key, Trace, number, plain
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.series import NORMS, RATES, Series, columns_of, epoch_starts, ratio_of, values_of
from ava_pipeline.report.style import styles_of
from ava_pipeline.report.text import by_epoch
from ava_pipeline.report.traces import bounds_of, traces_of

_WHOLE_HEIGHT, _PART_HEIGHT, _AROUND = 400, 165, 100
_GAP_PX = 30
_LOG = {"type": "log", "exponentformat": "power"}
_LINEAR = {"type": "linear", "exponentformat": "power", "minexponent": 6, "separatethousands": True}
_FEW_TICKS, _FEW_POWERS = 5, 3  # a part is low: plotly's own number of them would lie over each other

Subplots: TypeAlias = Mapping[str, str]


def subplots_of(columns: Sequence[str], *, each: bool) -> Subplots:
    """Column -> plotly's name of its y axis: one each, or one for all."""
    return {column: f"y{place + 1}" if each and place else "y" for place, column in enumerate(columns)}


def axes_of(parts: Subplots, *, is_log: bool) -> dict[str, Any]:
    """All axes, as plotly takes them."""
    axes = list(dict.fromkeys(parts.values()))
    gap = _GAP_PX / (height_of(parts) - _AROUND)
    height = (1 - gap * (len(axes) - 1)) / len(axes)
    style: dict[str, Any] = _LOG if is_log else _LINEAR
    if len(axes) > 1:
        style = style | {"nticks": _FEW_POWERS if is_log else _FEW_TICKS}
    found: dict[str, Any] = {"xaxis": {"title": {"text": "batch"}, "anchor": axes[-1]}}
    for place, axis in enumerate(axes):
        bottom = max(0.0, 1 - height - place * (height + gap))
        found[axis.replace("y", "yaxis")] = style | {"domain": [bottom, min(1.0, bottom + height)]}
    return found


def height_of(parts: Subplots) -> int:
    """Of the whole figure, in pixels."""
    num_parts = len(set(parts.values()))
    return _AROUND + _PART_HEIGHT * num_parts if num_parts > 1 else _WHOLE_HEIGHT


def subplot_titles(parts: Subplots) -> Iterator[dict[str, Any]]:
    """The column above the left end of its part: at the right lie the plot's own buttons."""
    for column, axis in parts.items():
        place = {"xref": "paper", "x": 0, "yref": f"{axis} domain", "y": 1, "xanchor": "left", "yanchor": "bottom"}
        yield place | {"text": f"<b>{plain(column)}</b>", "showarrow": False}


_MAX_SLICES, _LEAST_SLICES, _ALL_SLICES = 1500, 20, 12_000
_PX_OF_NAMES = 16  # above the first part its name stands below those of the epochs


class _Words(NamedTuple):
    """What is written around a figure."""

    name: str
    title: str
    caption: str


_NORMS = _Words(
    "norms",
    "Gradient norms by group",
    "L2 norms of the gradients of each group, logarithmic. Bands are findings, dotted lines the beginnings of epochs. "
    "A cross marks nan or inf, a triangle 0, a break what was not measured. Of many rows a line is the median, and the "
    "area around it reaches from the lowest to the highest.",
)
_RATIO = _Words(
    "ratio",
    "Ratio of backbone to head",
    "The norm of the last backbone stage over the head's: near 0, the backbone is not learning. "
    "A cross marks where it is no number.",
)
_RATES = _Words("rates", "Learning rates", "The rate that each step used, by the optimizer's groups, logarithmic.")
_VALUES = _Words("values", "Values", "What the training loop gave with each step, and what clipping and scaling did.")
_BORDERS = "A band's border has its run's colour."


def figures_by_batch(runs: Sequence[RunData]) -> Iterator[Figure]:
    """Those for which there are rows; several runs lie over each other, each column in a part of its own."""
    given: dict[_Words, list[Series]] = {
        _NORMS: [one for seen in runs for one in columns_of(seen, NORMS)],
        _RATIO: [one for seen in runs for one in ratio_of(seen)],
        _RATES: [one for seen in runs for one in columns_of(seen, RATES)],
        _VALUES: [one for seen in runs for one in values_of(seen)],
    }
    num_slices = _num_slices(sum(map(len, given.values())))
    for words, series in given.items():
        if series:
            yield _figure(words, runs, series, num_slices)


def _num_slices(num_series: int) -> int:
    """As fine as the page's size allows, however many series share it."""
    return min(_MAX_SLICES, max(_LEAST_SLICES, _ALL_SLICES // max(1, num_series)))


def _figure(words: _Words, runs: Sequence[RunData], series: Sequence[Series], num_slices: int) -> Figure:
    columns = list(dict.fromkeys(one.column for one in series))
    is_split = words is _VALUES or (len(runs) > 1 and len(columns) > 1)  # values have nothing in common
    parts = subplots_of(columns, each=is_split)
    starts = epoch_starts(series)
    names = subplot_titles(parts) if is_split else ()
    return Figure(
        name=words.name,
        title=words.title,
        caption=f"{words.caption} {_BORDERS}" if len(runs) > 1 else words.caption,
        label=_label(words.title, series, starts),
        traces=list(_traces(series, parts, num_slices, [seen.name for seen in runs])),
        layout={
            **axes_of(parts, is_log=series[0].is_log),
            "shapes": [*epoch_lines(starts), *_bands(words, runs, parts if is_split else {})],
            "annotations": [*epoch_names(starts, shift=_PX_OF_NAMES if is_split else 0), *names],
            "height": height_of(parts),
            "margin": {"l": 56, "r": 14, "t": 26 + (_PX_OF_NAMES if is_split else 0), "b": 44},
            "hovermode": "closest" if is_split else "x unified",
        },
        table=by_epoch(series),
        legend=_legend(columns) if len(runs) == 1 and not is_split else (),
        is_by_batch=True,
    )


def _bands(words: _Words, runs: Sequence[RunData], axis_of: Subplots) -> Iterator[Shape]:
    looks = styles_of(seen.name for seen in runs)
    for seen in runs:
        border = looks[seen.name].color if len(runs) > 1 else None
        yield from bands(findings_in(seen, words.name), axis_of, seen.name, border)


def _traces(series: Sequence[Series], parts: Subplots, num_slices: int, runs: Sequence[str]) -> Iterator[Trace]:
    """One run: a look a column. Several: a look a run."""
    looks = styles_of(runs if len(runs) > 1 else parts)
    for one in series:
        name = one.run if len(runs) > 1 else one.column
        beside = [other for other in series if parts[other.column] == parts[one.column]]
        axes = {"xaxis": "x", "yaxis": parts[one.column]}
        yield from traces_of(one, num_slices, name=name, look=looks[name], bounds=bounds_of(beside), axes=axes)


def _legend(columns: Sequence[str]) -> list[Key]:
    return [Key(name, look) for name, look in styles_of(columns).items()]


def _label(title: str, series: Sequence[Series], starts: dict[int, int]) -> str:
    """The plot in words."""
    first, last = (int(pick([pick(one.batches) for one in series])) for pick in (np.min, np.max))
    epochs = f", {len(starts)} epochs" if starts else ""
    return f"{title}, line plot over batches {first} to {last}{epochs}. {' '.join(map(_in_words, series))}"


def _in_words(series: Series) -> str:
    finite = series.values[np.isfinite(series.values)]
    name = f"{series.run}, {series.column}"
    if not len(finite):
        return f"{name}: nothing finite."
    return f"{name}: {number(finite.min())} to {number(finite.max())}, median {number(np.median(finite))}."
