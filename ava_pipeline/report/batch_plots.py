"""Figures over batches: gradient norms, the ratio of backbone to head, learning rates, values, and further tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ava_pipeline.report.annotations import Shape, epoch_lines, epoch_names, finding_bands, findings_in
from ava_pipeline.report.contents import by_epoch
from ava_pipeline.report.derived import DELTAS, LABELS, holdout_series, label_scores, label_shares, update_ratios
from ava_pipeline.report.figure import Figure, LegendKey, Trace, label_text, number_text, styles_of
from ava_pipeline.report.layer_plots import layer_figures
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.series import NORMS, RATES, STEPS, Series, columns_of, epoch_starts, ratio_of
from ava_pipeline.report.traces import bounds_of, traces_of

_HEIGHT_PX, _SUBPLOT_HEIGHT_PX, _MARGINS_PX = 400, 165, 100
_GAP_PX = 30
_EPOCH_NAMES_PX = 16  # the names of epochs are above the name of the first subplot
_LOG = {"type": "log", "exponentformat": "power"}
_LINEAR = {"type": "linear", "exponentformat": "power", "minexponent": 6, "separatethousands": True}
_NUM_TICKS, _NUM_LOG_TICKS = 5, 3  # a subplot is low: as many ticks as plotly chooses would overlap
_MAX_SLICES, _MIN_SLICES, _SLICES_OF_ALL = 1500, 20, 11_000

Subplots: TypeAlias = Mapping[str, str]  # column -> plotly's name of its y axis


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    title: str
    caption: str
    has_subplots: bool = False  # a subplot for each column, if the columns have no unit in common


_NORMS = _Subject(
    "norms",
    "Gradient norms by group",
    "L2 norms of the gradients of each group on a logarithmic scale. Bands are findings, dotted lines the first "
    "batches of epochs. A cross marks nan or inf, a triangle 0, and the line breaks where nothing was measured. In a "
    "long run the line is the median of several rows, and the area around it spans their lowest to highest value.",
)
_RATIO = _Subject(
    "ratio",
    "Ratio of backbone to head",
    "The norm of the last backbone stage divided by that of the head: near 0, the backbone is not learning. "
    "A cross marks a ratio that is not a finite number.",
)
_RATES = _Subject(
    "rates", "Learning rates", "The rate that each step used, by optimizer group, on a logarithmic scale."
)
_VALUES = _Subject(
    "values",
    "Values",
    "The values that the training loop passed to each step, and the effects of clipping and loss scaling.",
    has_subplots=True,
)
_UPDATES = _Subject(
    "updates",
    "Update ratio by group",
    "How far the parameters of each group moved since the row before, as a share of their norm, on a logarithmic "
    "scale. The updates of n batches add up to something between √n times one update, if their directions are "
    "independent, and n times, if all are the same; so the ratio is not divided by n.",
)
_LABELS = _Subject(
    "labels",
    "Label balance",
    "The share of each class among the labels of a batch, in percent. Batches that are drawn at random vary around the "
    "share of the class in the data.",
)
_LABEL_SCORES = _Subject(
    "label-scores", "Labels", "Mean and standard deviation of the labels' scores in each batch.", has_subplots=True
)
_HOLDOUT_CLASSES = _Subject(
    "holdout",
    "Held-out samples",
    "Of the same samples at each collected step: the accuracy, which is the share predicted correctly, and the "
    "confidence, which is the mean softmax of the predicted class. A cross marks predictions that are not finite.",
)
_HOLDOUT_SCORES = _Subject(
    "holdout-scores",
    "Held-out samples",
    "Of the same samples at each collected step: the mean absolute error of the mean score, and the mean of the "
    "predicted mean scores.",
    has_subplots=True,
)
_BORDERS = "The border of a band has the colour of its run."
_SHOWN = {NORMS, RATES, STEPS, LABELS}


def figures_by_batch(runs: Sequence[RunData]) -> Iterator[Figure]:
    """The figures for which a run has rows; several runs share the axes, with a subplot for each column."""
    series: dict[_Subject, list[Series]] = {
        _NORMS: [column for run in runs for column in columns_of(run, NORMS)],
        _RATIO: [ratio for run in runs for ratio in ratio_of(run)],
        _UPDATES: [ratio for run in runs for ratio in update_ratios(run)],
        _RATES: [column for run in runs for column in columns_of(run, RATES)],
        _VALUES: [column for run in runs for column in columns_of(run, STEPS, is_log=False)],
        _HOLDOUT_CLASSES: [mean for run in runs for mean in holdout_series(run, of_scores=False)],
        _HOLDOUT_SCORES: [mean for run in runs for mean in holdout_series(run, of_scores=True)],
        _LABELS: [share for run in runs for share in label_shares(run)],
        _LABEL_SCORES: [score for run in runs for score in label_scores(run)],
    }
    for subject, table in _further_tables(runs).items():
        series[subject] = [column for run in runs for column in columns_of(run, table, is_log=False)]
    num_slices = _num_slices(sum(map(len, series.values())))
    for subject, columns in series.items():
        if columns:
            yield _figure(subject, runs, columns, num_slices)
        if subject is _UPDATES:
            yield from layer_figures(runs)


def _further_tables(runs: Sequence[RunData]) -> dict[_Subject, str]:
    """The tables of the manifests, such as those of the user's own measures, that no other figure shows."""
    tables: dict[str, _Subject] = {}
    for run in runs:
        for name, entry in run.manifest.tables.items() if run.manifest else ():
            table = entry.declaration.table
            if name not in _SHOWN and not table.is_long and not (name == DELTAS and update_ratios(run)):
                # Columns that follow the groups are alike and share the axes.
                tables.setdefault(
                    name, _Subject(f"table-{name}", name, table.description, has_subplots=table.run_columns is None)
                )
    return {subject: name for name, subject in tables.items()}


def _num_slices(num_series: int) -> int:
    """As many slices as keep the page small, whatever the number of series."""
    return min(_MAX_SLICES, max(_MIN_SLICES, _SLICES_OF_ALL // max(1, num_series)))


def _figure(subject: _Subject, runs: Sequence[RunData], series: Sequence[Series], num_slices: int) -> Figure:
    columns = list(dict.fromkeys(column.column for column in series))
    is_split = subject.has_subplots or (len(runs) > 1 and len(columns) > 1)
    subplots = _subplots(columns, is_split=is_split)
    starts = epoch_starts(series)
    titles = _subplot_titles(subplots) if is_split else ()
    shift_px = _EPOCH_NAMES_PX if is_split else 0
    return Figure(
        name=subject.name,
        title=subject.title,
        caption=" ".join([subject.caption, *_spans(series), *([_BORDERS] if len(runs) > 1 else ())]),
        label=_label(subject.title, series, starts),
        traces=list(_traces(series, subplots, num_slices, [run.name for run in runs])),
        layout={
            **_axes(subplots, is_log=series[0].is_log),
            "shapes": [*epoch_lines(starts), *_bands(subject, runs, subplots if is_split else {})],
            "annotations": [*epoch_names(starts, shift_px=shift_px), *titles],
            "height": _height_px(subplots),
            "margin": {"l": 56, "r": 14, "t": 26 + shift_px, "b": 44},
            "hovermode": "closest" if is_split else "x unified",
        },
        table=by_epoch(series),
        legend=_legend(columns) if len(runs) == 1 and not is_split else (),
        is_by_batch=True,
    )


def _spans(series: Sequence[Series]) -> Iterator[str]:
    """A sentence about the batches that each value spans, if the values span several."""
    found = [one.num_batches[~one.is_null] for one in series if one.num_batches is not None]
    nums = np.concatenate(found) if found else np.empty(0)
    if len(nums):
        low, usual, high = int(nums.min()), int(np.median(nums)), int(nums.max())
        yield f"Here n is {low}." if low == high else f"Here n is {low} to {high}, and {usual} in most rows."


def _subplots(columns: Sequence[str], *, is_split: bool) -> Subplots:
    """A y axis for each column, or one for all of them."""
    return {column: f"y{place + 1}" if is_split and place else "y" for place, column in enumerate(columns)}


def _axes(subplots: Subplots, *, is_log: bool) -> dict[str, Any]:
    """All axes of a figure, from the top down, in plotly's terms."""
    names = list(dict.fromkeys(subplots.values()))
    gap = _GAP_PX / (_height_px(subplots) - _MARGINS_PX)
    height = (1 - gap * (len(names) - 1)) / len(names)
    style: dict[str, Any] = _LOG if is_log else _LINEAR
    if len(names) > 1:
        style = style | {"nticks": _NUM_LOG_TICKS if is_log else _NUM_TICKS}
    axes: dict[str, Any] = {"xaxis": {"title": {"text": "batch"}, "anchor": names[-1]}}
    for place, name in enumerate(names):
        bottom = max(0.0, 1 - height - place * (height + gap))
        axes[name.replace("y", "yaxis")] = style | {"domain": [bottom, min(1.0, bottom + height)]}
    return axes


def _height_px(subplots: Subplots) -> int:
    num_subplots = len(set(subplots.values()))
    return _MARGINS_PX + _SUBPLOT_HEIGHT_PX * num_subplots if num_subplots > 1 else _HEIGHT_PX


def _subplot_titles(subplots: Subplots) -> Iterator[dict[str, Any]]:
    """The name of each column above the left end of its subplot; plotly's buttons are at the right."""
    for column, axis in subplots.items():
        place = {"xref": "paper", "x": 0, "yref": f"{axis} domain", "y": 1, "xanchor": "left", "yanchor": "bottom"}
        yield place | {"text": f"<b>{label_text(column)}</b>", "showarrow": False}


def _bands(subject: _Subject, runs: Sequence[RunData], axis_of: Subplots) -> Iterator[Shape]:
    styles = styles_of(run.name for run in runs)
    for run in runs:
        border = styles[run.name].color if len(runs) > 1 else None
        yield from finding_bands(findings_in(run, subject.name), axis_of, run.name, border)


def _traces(series: Sequence[Series], subplots: Subplots, num_slices: int, runs: Sequence[str]) -> Iterator[Trace]:
    """Of one run, each column has a style; of several runs, each run."""
    styles = styles_of(runs if len(runs) > 1 else subplots)
    for column in series:
        name = column.run if len(runs) > 1 else column.column
        bounds = bounds_of([other for other in series if subplots[other.column] == subplots[column.column]])
        axes = {"xaxis": "x", "yaxis": subplots[column.column]}
        yield from traces_of(column, num_slices, name=name, style=styles[name], bounds=bounds, axes=axes)


def _legend(columns: Sequence[str]) -> list[LegendKey]:
    return [LegendKey(name, style) for name, style in styles_of(columns).items()]


def _label(title: str, series: Sequence[Series], starts: dict[int, int]) -> str:
    first, last = (int(pick([pick(column.batches) for column in series])) for pick in (np.min, np.max))
    epochs = f", {len(starts)} epochs" if starts else ""
    return f"{title}, line plot over batches {first} to {last}{epochs}. {' '.join(map(_in_words, series))}"


def _in_words(series: Series) -> str:
    finite = series.values[np.isfinite(series.values)]
    name = f"{series.run}, {series.column}"
    if not len(finite):
        return f"{name}: no finite value."
    low, high, median = map(number_text, (finite.min(), finite.max(), np.median(finite)))
    return f"{name}: {low} to {high}, median {median}."
