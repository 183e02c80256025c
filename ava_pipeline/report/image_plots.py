"""Figures over the images of the last epoch: means, residuals, and single distributions."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.predictions import SCORES
from ava_pipeline.read.predictions import Predicted
from ava_pipeline.report.figure import Figure, TextTable, Trace, number, plain
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.style import Style, style_at, styles_of

_MAX_IMAGES = 3000
_HEIGHT = 400
_THROUGH = {"color": "#8c8c8c", "dash": "dash", "width": 1.5}

Places = NDArray[np.intp]
Given = dict[str, Predicted]
Looks = dict[str, Style]


def figures_by_image(runs: Sequence[RunData]) -> Iterator[Figure]:
    """Predicted against true means, and residuals."""
    given = {seen.name: seen.predictions[1] for seen in runs if seen.predictions is not None}
    if given:
        looks = styles_of(seen.name for seen in runs)
        yield _predicted_against_true(given, looks)
        yield _residuals(given, looks)


def epochs_told(runs: Sequence[RunData]) -> str:
    """Which epoch's predictions are shown."""
    told = [(seen.name, seen.predictions[0].epoch) for seen in runs if seen.predictions is not None]
    if len({epoch for _, epoch in told}) == 1:
        return f"Validation images of epoch {told[0][1]}, the last with predictions."
    return (
        "Validation images of the last epoch with predictions: "
        + ", ".join(f"{epoch} of {name}" for name, epoch in told)
        + "."
    )


def _predicted_against_true(given: Given, looks: Looks) -> Figure:
    traces = [_scatter(looks[run], run, one, one.pred_mean, len(given)) for run, one in given.items()]
    low, high = _span(given)
    words = " ".join(_in_words(run, one) for run, one in given.items())
    ends = {"x0": low, "y0": low, "x1": high, "y1": high}
    return Figure(
        name="predicted",
        title="Predicted against true mean score",
        caption=f"A point an image; on the dashed diagonal, predicted is true. {_told_choice(given)}",
        label=f"Predicted against true mean score, scatter plot. {words}",
        traces=traces,
        layout={
            "height": _HEIGHT,
            "shapes": [{"type": "line", **ends, "line": _THROUGH}],
            "xaxis": {"title": {"text": "true mean score"}, "range": [low, high]},
            "yaxis": {"title": {"text": "predicted mean score"}, "range": [low, high]},
        },
        table=_by_score(given),
    )


def _span(given: Given) -> tuple[float, float]:
    """What both axes show: all means, and a little around them."""
    means = np.concatenate([side for one in given.values() for side in (one.pred_mean, one.gt_mean)])
    finite = means[np.isfinite(means)]
    return (float(finite.min()) - 0.2, float(finite.max()) + 0.2) if len(finite) else (1.0, 10.0)


def _in_words(run: str, one: Predicted) -> str:
    low, high, least, most = (
        number(float(side)) for means in (one.pred_mean, one.gt_mean) for side in (means.min(), means.max())
    )
    return f"{run}: predicted {low} to {high}, true {least} to {most}."


def _residuals(given: Given, looks: Looks) -> Figure:
    traces = [_scatter(looks[run], run, one, one.pred_mean - one.gt_mean, len(given)) for run, one in given.items()]
    medians = [_median_line(looks[run], run, one) for run, one in given.items()]
    return Figure(
        name="residuals",
        title="Residuals by true score",
        caption=f"Predicted minus true mean; the line is the median in steps of half a score. {_told_choice(given)}",
        label="Residuals by true score, scatter plot: predicted minus true mean. The table holds its medians.",
        traces=[*traces, *medians],
        layout={
            "height": _HEIGHT,
            "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": _THROUGH}],
            "xaxis": {"title": {"text": "true mean score"}},
            "yaxis": {"title": {"text": "predicted minus true"}},
        },
        table=_by_score(given),
    )


def _scatter(look: Style, run: str, predicted: Predicted, heights: NDArray[np.float64], num_runs: int) -> Trace:
    chosen = _chosen(predicted, _MAX_IMAGES // num_runs)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(run),
        "legendgroup": run,
        "x": predicted.gt_mean[chosen].astype(np.float32),
        "y": heights[chosen].astype(np.float32),
        "text": [plain(one) for one in image_names(predicted, chosen)],
        "hovertemplate": "image %{text}<br>true %{x:.2f}, %{y:.2f}<extra>%{fullData.name}</extra>",
        "marker": {"size": 6, "opacity": 0.75, "color": look.color, "symbol": look.symbol},
    }


def _chosen(predicted: Predicted, most: int) -> Places:
    """Of many images, those predicted worst and others evenly from the rest."""
    order = np.argsort(-np.abs(predicted.pred_mean - predicted.gt_mean), kind="stable")
    if len(order) <= most:
        return order
    num_worst = most // 4
    rest = order[num_worst:]
    return np.append(order[:num_worst], rest[np.linspace(0, len(rest) - 1, most - num_worst).astype(np.intp)])


def _told_choice(given: Given) -> str:
    most = _MAX_IMAGES // len(given)
    if all(one.num_images <= most for one in given.values()):
        return ""
    return f"Of each run's images {most} are drawn, the quarter of them that is off most and others evenly."


def image_names(predicted: Predicted, chosen: Places) -> list[object]:
    """The ids of some images; where there are none, their rows."""
    if predicted.image_ids is None:
        return [f"in row {row}" for row in chosen]
    return [one.as_py() for one in predicted.image_ids.take(chosen)]


def _half_scores(predicted: Predicted) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """The lower end of each half score that has images, and their residuals."""
    steps = np.floor(predicted.gt_mean * 2) / 2
    for step in np.unique(steps[np.isfinite(steps)]):
        yield float(step), (predicted.pred_mean - predicted.gt_mean)[steps == step]


def _median_line(look: Style, run: str, predicted: Predicted) -> Trace:
    found = [(step + 0.25, float(np.median(residuals))) for step, residuals in _half_scores(predicted)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(f"{run}: median"),
        "legendgroup": run,
        "x": [middle for middle, _ in found],
        "y": [median for _, median in found],
        "line": {"color": look.color, "dash": look.dash, "width": 2.5},
        "hovertemplate": "median %{y:.2f}<extra>%{fullData.name}</extra>",
    }


def _by_score(given: Given) -> TextTable:
    rows = [
        [
            run,
            f"{step:g} to {step + 0.5:g}",
            str(len(residuals)),
            number(float(np.median(residuals))),
            number(float(np.abs(residuals).mean())),
        ]
        for run, one in given.items()
        for step, residuals in _half_scores(one)
    ]
    return TextTable(["run", "true score", "images", "median residual", "mean absolute residual"], rows)


_DISTRIBUTION_HEIGHT = 240


def figures_of_images(runs: Sequence[RunData]) -> Iterator[Figure]:
    """Distributions of the images predicted best, worst and in between, of each run."""
    for number_of_run, seen in enumerate(runs):
        if seen.predictions is not None:
            yield from _distributions(seen, seen.predictions[1], number_of_run, is_alone=len(runs) == 1)


def _distributions(seen: RunData, predicted: Predicted, number_of_run: int, *, is_alone: bool) -> Iterator[Figure]:
    """The images with the least, the middle and the greatest distance of distributions (emd_r2)."""
    distance = np.sqrt(np.square(np.cumsum(predicted.pred - predicted.truth, axis=1)).mean(axis=1))
    order = np.argsort(distance, kind="stable")
    for what, place in (("best", 0), ("median", len(order) // 2), ("worst", -1)):
        image = order[place]
        shown = image_names(predicted, np.asarray([image]))[0]
        title = f"{'' if is_alone else f'{seen.name}, '}{what}: image {shown}"
        yield _distribution(
            f"image-{number_of_run}-{what}",
            title,
            float(distance[image]),
            predicted.pred[image],
            predicted.truth[image],
        )


def _distribution(
    name: str, title: str, distance: float, pred: NDArray[np.float64], truth: NDArray[np.float64]
) -> Figure:
    scores = list(SCORES)
    bars: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": what,
            "x": scores,
            "y": shares,
            "marker": {"color": style_at(place).color},
            "hovertemplate": "%{y:.1%}",
        }
        for place, (what, shares) in enumerate((("predicted", pred), ("true", truth)))
    ]
    rows = [[str(score), f"{one:.1%}", f"{other:.1%}"] for score, one, other in zip(scores, pred, truth, strict=True)]
    return Figure(
        name=name,
        title=title,
        caption=f"Distance of the distributions (emd_r2): {number(distance)}.",
        label=f"{title}: bar chart of predicted and true shares of the scores 1 to 10.",
        traces=bars,
        layout={
            "height": _DISTRIBUTION_HEIGHT,
            "showlegend": True,
            "barmode": "group",
            "hovermode": "x unified",
            "xaxis": {"dtick": 1},
            "yaxis": {"tickformat": ".0%"},
        },
        table=TextTable(["score", "predicted", "true"], rows),
    )
