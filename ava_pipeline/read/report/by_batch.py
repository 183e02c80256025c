"""Figures over batches: norms by group, the ratio of backbone to head, learning rates."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ava_pipeline.read.report.drawn import Drawn, Trace, number, plain
from ava_pipeline.read.report.lines import bounds_of, traces_of
from ava_pipeline.read.report.looks import Look, looks_of
from ava_pipeline.read.report.marks import bands, epoch_lines, epoch_names, place_of, shown_findings
from ava_pipeline.read.report.seen import Seen
from ava_pipeline.read.report.series import NORMS, RATES, Series, columns_of, epoch_starts, ratio_of
from ava_pipeline.read.report.text_tables import by_epoch
from ava_pipeline.signs.finding import Finding

_MAX_SLICES, _LEAST_SLICES, _ALL_SLICES = 2000, 20, 24_000
_HEIGHT, _PART_HEIGHT, _AROUND = 440, 170, 120
_GAP_PX = 30
_SIGNS = (
    "Bands are findings, dotted lines the beginnings of epochs. "
    "A cross marks nan or inf, a triangle 0, a break what was not measured."
)


def figures_by_batch(runs: Sequence[Seen]) -> Iterator[Drawn]:
    """Those for which there are rows; several runs lie over each other, each group in a part of its own."""
    norms, ratios, rates = (list(chain.from_iterable(map(of, runs))) for of in (_norms, ratio_of, _rates))
    num_slices = _num_slices([*norms, *ratios, *rates])
    findings = [finding for seen in runs for finding in shown_findings(seen)]
    looks = looks_of(seen.name for seen in runs) if len(runs) > 1 else {}
    if norms:
        caption = f"L2 norms of the gradients of each group, logarithmic. {_SIGNS}"
        words = _Words("norms", "Gradient norms by group", caption)
        yield _figure(words, norms, findings, num_slices, looks)
    if ratios:
        caption = "The norm of the last backbone stage over the head's: near 0, the backbone is not learning."
        yield _figure(_Words("ratio", "Ratio of backbone to head", caption), ratios, [], num_slices, looks)
    if rates:
        caption = "The rate that each step used, by the optimizer's groups, logarithmic."
        yield _figure(_Words("rates", "Learning rates", caption), rates, findings, num_slices, looks)


class _Words(NamedTuple):
    """What is written around a figure."""

    name: str
    title: str
    caption: str


def _norms(seen: Seen) -> list[Series]:
    return columns_of(seen, NORMS)


def _rates(seen: Seen) -> list[Series]:
    return columns_of(seen, RATES)


def _num_slices(series: Sequence[Series]) -> int:
    """As fine as the page's size allows, however many series share it."""
    return min(_MAX_SLICES, max(_LEAST_SLICES, _ALL_SLICES // max(1, len(series))))


def _figure(
    words: _Words,
    series: Sequence[Series],
    findings: Sequence[Finding],
    num_slices: int,
    looks: dict[str, Look],
) -> Drawn:
    """One run: a look a column. Several: a look a run, and a part of the plot a column."""
    columns = list(dict.fromkeys(one.column for one in series))
    in_parts = bool(looks) and len(columns) > 1
    parts = {column: _axis(place) if in_parts else "y" for place, column in enumerate(columns)}
    starts = epoch_starts(series)
    here = [finding for finding in findings if place_of(finding) == words.name]
    return Drawn(
        name=words.name,
        title=words.title,
        caption=words.caption,
        label=_label(words.title, series, starts),
        traces=list(_traces(series, parts, num_slices, looks)),
        layout={
            **_axes(parts),
            "shapes": [*epoch_lines(starts), *bands(here, parts if in_parts else {})],
            "annotations": [*epoch_names(starts), *(_part_names(parts) if in_parts else ())],
            "height": _AROUND + _PART_HEIGHT * len(columns) if in_parts else _HEIGHT,
            "hovermode": "closest" if in_parts else "x unified",
        },
        table=by_epoch(series),
        is_by_batch=True,
    )


def _traces(
    series: Sequence[Series], parts: dict[str, str], num_slices: int, looks_of_runs: dict[str, Look]
) -> Iterator[Trace]:
    looks_of_columns = looks_of(parts)
    first = next(iter(parts.values()))
    for one in series:
        name, look = (one.run, looks_of_runs[one.run]) if looks_of_runs else (one.column, looks_of_columns[one.column])
        beside = [other for other in series if parts[other.column] == parts[one.column]]
        axes = {"xaxis": "x", "yaxis": parts[one.column]}
        for trace in traces_of(one, num_slices, name=name, look=look, bounds=bounds_of(beside), axes=axes):
            yield trace | ({} if parts[one.column] == first else {"showlegend": False})


def _axis(place: int) -> str:
    return f"y{place + 1}" if place else "y"


def _axes(parts: dict[str, str]) -> dict[str, Any]:
    """A y axis a part, one above the other, and one x axis for all."""
    axes = list(dict.fromkeys(parts.values()))
    height = _PART_HEIGHT * len(axes)
    found: dict[str, Any] = {"xaxis": {"title": {"text": "batch"}, "anchor": axes[-1]}}
    for place, axis in enumerate(axes):
        top = 1 - place / len(axes)
        bottom = top - 1 / len(axes) + (_GAP_PX / height if len(axes) > 1 else 0)
        style = {"type": "log", "exponentformat": "power", "domain": [max(0.0, bottom), top]}
        found[axis.replace("y", "yaxis")] = style
    return found


def _part_names(parts: dict[str, str]) -> Iterator[dict[str, Any]]:
    for column, axis in parts.items():
        place = {"xref": "paper", "x": 1, "yref": f"{axis} domain", "y": 1, "xanchor": "right", "yanchor": "bottom"}
        yield place | {"text": f"<b>{plain(column)}</b>", "showarrow": False}


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
