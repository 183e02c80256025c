"""Figures over the images of the latest predictions: mean scores, residuals, and the distributions of single images."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.builtin_tables import SCORES
from ava_pipeline.read.predictions import Predicted
from ava_pipeline.report.figure import Figure, Style, TextTable, Trace, label_text, number_text, style_at, styles_of
from ava_pipeline.report.run_data import RunData

_MAX_IMAGES = 3000
_HEIGHT_PX, _DISTRIBUTION_HEIGHT_PX = 400, 240
_DASHED = {"color": "#8c8c8c", "dash": "dash", "width": 1.5}

PredictedOf: TypeAlias = dict[str, Predicted]  # by run
Styles: TypeAlias = dict[str, Style]  # by run


def epochs_note(runs: Sequence[RunData]) -> str:
    """A sentence that says after which epoch or batch the predictions that are shown were made."""
    moments = [(run.name, run.predictions[0].moment) for run in runs if run.predictions is not None]
    if len({moment for _, moment in moments}) == 1:
        return f"Validation images of {moments[0][1]}, the last with predictions."
    listed = "; ".join(f"{moment} of {name}" for name, moment in moments)
    return f"Validation images of the last epoch with predictions: {listed}."


def figures_by_image(runs: Sequence[RunData]) -> Iterator[Figure]:
    """Predicted against true mean scores, and residuals."""
    predicted_of = {run.name: run.predictions[1] for run in runs if run.predictions is not None}
    if predicted_of:
        styles = styles_of(run.name for run in runs)
        yield _predicted_against_true(predicted_of, styles)
        yield _residuals(predicted_of, styles)


def figures_of_images(runs: Sequence[RunData]) -> Iterator[Figure]:
    """The distributions of the images that each run predicts best, median and worst, by emd_r2."""
    for run_index, run in enumerate(runs):
        if run.predictions is None:
            continue
        _, predicted = run.predictions
        distance = np.sqrt(np.square(np.cumsum(predicted.pred - predicted.truth, axis=1)).mean(axis=1))
        order = np.argsort(distance, kind="stable")
        order = order[np.isfinite(distance[order])]  # a model of the mean alone has no distributions
        if not len(order):
            continue
        for rank, place in (("best", 0), ("median", len(order) // 2), ("worst", -1)):
            row = order[place]
            image = image_names(predicted, np.asarray([row]))[0]
            title = f"{f'{run.name}, ' if len(runs) > 1 else ''}{rank}: image {image}"
            pred, truth = predicted.pred[row], predicted.truth[row]
            yield _distribution(f"image-{run_index}-{rank}", title, float(distance[row]), pred, truth)


def image_names(predicted: Predicted, rows: NDArray[np.intp]) -> list[object]:
    """The ids of the images in these rows; their row numbers if the file has no ids."""
    if predicted.image_ids is None:
        return [f"in row {row}" for row in rows]
    return [image_id.as_py() for image_id in predicted.image_ids.take(rows)]


def _predicted_against_true(predicted_of: PredictedOf, styles: Styles) -> Figure:
    low, high = _axis_range(predicted_of)
    words = " ".join(_in_words(run, predicted) for run, predicted in predicted_of.items())
    ends = {"x0": low, "y0": low, "x1": high, "y1": high}
    return Figure(
        name="predicted",
        title="Predicted against true mean score",
        caption=f"Each point is an image; on the dashed diagonal, the prediction is exact. {_choice(predicted_of)}",
        label=f"Predicted against true mean score, scatter plot. {words}",
        traces=[
            _scatter(styles[run], run, predicted, predicted.pred_mean, len(predicted_of))
            for run, predicted in predicted_of.items()
        ],
        layout={
            "height": _HEIGHT_PX,
            "shapes": [{"type": "line", **ends, "line": _DASHED}],
            "xaxis": {"title": {"text": "true mean score"}, "range": [low, high]},
            "yaxis": {"title": {"text": "predicted mean score"}, "range": [low, high]},
        },
        table=_by_score(predicted_of),
    )


def _axis_range(predicted_of: PredictedOf) -> tuple[float, float]:
    means = np.concatenate([side for each in predicted_of.values() for side in (each.pred_mean, each.gt_mean)])
    finite = means[np.isfinite(means)]
    return (float(finite.min()) - 0.2, float(finite.max()) + 0.2) if len(finite) else (1.0, 10.0)


def _in_words(run: str, predicted: Predicted) -> str:
    low, high, true_low, true_high = (
        number_text(float(end))
        for means in (predicted.pred_mean, predicted.gt_mean)
        for end in (means.min(), means.max())
    )
    return f"{run}: predicted {low} to {high}, true {true_low} to {true_high}."


def _residuals(predicted_of: PredictedOf, styles: Styles) -> Figure:
    scatter = [
        _scatter(styles[run], run, predicted, predicted.pred_mean - predicted.gt_mean, len(predicted_of))
        for run, predicted in predicted_of.items()
    ]
    medians = [_median_line(styles[run], run, predicted) for run, predicted in predicted_of.items()]
    return Figure(
        name="residuals",
        title="Residuals by true score",
        caption=f"Predicted minus true mean score; the line is the median of each half score. {_choice(predicted_of)}",
        label="Residuals by true score, scatter plot: predicted minus true mean. The table holds the medians.",
        traces=[*scatter, *medians],
        layout={
            "height": _HEIGHT_PX,
            "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": _DASHED}],
            "xaxis": {"title": {"text": "true mean score"}},
            "yaxis": {"title": {"text": "predicted minus true"}},
        },
        table=_by_score(predicted_of),
    )


def _scatter(style: Style, run: str, predicted: Predicted, heights: Floats, num_runs: int) -> Trace:
    rows = _chosen_rows(predicted, _MAX_IMAGES // num_runs)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label_text(run),
        "legendgroup": run,
        "x": predicted.gt_mean[rows].astype(np.float32),
        "y": heights[rows].astype(np.float32),
        "text": [label_text(name) for name in image_names(predicted, rows)],
        "hovertemplate": "image %{text}<br>true %{x:.2f}, %{y:.2f}<extra>%{fullData.name}</extra>",
        "marker": {"size": 6, "opacity": 0.75, "color": style.color, "symbol": style.symbol},
    }


def _chosen_rows(predicted: Predicted, most: int) -> NDArray[np.intp]:
    """All images; of too many, the quarter with the largest errors and an even choice of the rest."""
    order = np.argsort(-np.abs(predicted.pred_mean - predicted.gt_mean), kind="stable")
    if len(order) <= most:
        return order
    num_worst = most // 4
    rest = order[num_worst:]
    return np.append(order[:num_worst], rest[np.linspace(0, len(rest) - 1, most - num_worst).astype(np.intp)])


def _choice(predicted_of: PredictedOf) -> str:
    """A sentence on how the images were chosen, if not all of them are drawn."""
    most = _MAX_IMAGES // len(predicted_of)
    if all(predicted.num_images <= most for predicted in predicted_of.values()):
        return ""
    return f"Of each run, {most} images are drawn: a quarter with the largest errors, the rest chosen evenly."


def _half_scores(predicted: Predicted) -> Iterator[tuple[float, Floats]]:
    """The lower end of each half score that has images, and the residuals of these images."""
    half_scores = np.floor(predicted.gt_mean * 2) / 2
    for half_score in np.unique(half_scores[np.isfinite(half_scores)]):
        yield float(half_score), (predicted.pred_mean - predicted.gt_mean)[half_scores == half_score]


def _median_line(style: Style, run: str, predicted: Predicted) -> Trace:
    medians = [(low + 0.25, float(np.median(residuals))) for low, residuals in _half_scores(predicted)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label_text(f"{run}: median"),
        "legendgroup": run,
        "x": [middle for middle, _ in medians],
        "y": [median for _, median in medians],
        "line": {"color": style.color, "dash": style.dash, "width": 2.5},
        "hovertemplate": "median %{y:.2f}<extra>%{fullData.name}</extra>",
    }


def _by_score(predicted_of: PredictedOf) -> TextTable:
    rows = [
        [
            run,
            f"{low:g} to {low + 0.5:g}",
            str(len(residuals)),
            number_text(float(np.median(residuals))),
            number_text(float(np.abs(residuals).mean())),
        ]
        for run, predicted in predicted_of.items()
        for low, residuals in _half_scores(predicted)
    ]
    return TextTable(["run", "true score", "images", "median residual", "mean absolute residual"], rows)


def _distribution(name: str, title: str, distance: float, pred: Floats, truth: Floats) -> Figure:
    scores = list(SCORES)
    bars: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": side,
            "x": scores,
            "y": shares,
            "marker": {"color": style_at(index).color},
            "hovertemplate": "%{y:.1%}",
        }
        for index, (side, shares) in enumerate((("predicted", pred), ("true", truth)))
    ]
    rows = [[str(score), f"{p:.1%}", f"{t:.1%}"] for score, p, t in zip(scores, pred, truth, strict=True)]
    return Figure(
        name=name,
        title=title,
        caption=f"Distance of the two distributions (emd_r2): {number_text(distance)}.",
        label=f"{title}: bar chart of the predicted and true shares of the scores 1 to 10.",
        traces=bars,
        layout={
            "height": _DISTRIBUTION_HEIGHT_PX,
            "showlegend": True,
            "barmode": "group",
            "hovermode": "x unified",
            "xaxis": {"dtick": 1},
            "yaxis": {"tickformat": ".0%"},
        },
        table=TextTable(["score", "predicted", "true"], rows),
    )
