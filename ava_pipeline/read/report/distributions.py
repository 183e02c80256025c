"""Figures of single images: the distributions predicted best, worst and in between."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.predictions import SCORES
from ava_pipeline.read.predicted import Predicted
from ava_pipeline.read.report.by_image import image_names
from ava_pipeline.read.report.drawn import Drawn, TextTable, number
from ava_pipeline.read.report.looks import look
from ava_pipeline.read.report.seen import Seen

_HEIGHT = 240


def figures_of_images(runs: Sequence[Seen]) -> Iterator[Drawn]:
    """Distributions of the images predicted best, worst and in between, of each run."""
    for number_of_run, seen in enumerate(runs):
        if seen.predictions is not None:
            yield from _distributions(seen, seen.predictions[1], number_of_run, is_alone=len(runs) == 1)


def _distributions(seen: Seen, predicted: Predicted, number_of_run: int, *, is_alone: bool) -> Iterator[Drawn]:
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
) -> Drawn:
    scores = list(SCORES)
    bars: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": what,
            "x": scores,
            "y": shares,
            "marker": {"color": look(place).color},
            "hovertemplate": "%{y:.1%}",
        }
        for place, (what, shares) in enumerate((("predicted", pred), ("true", truth)))
    ]
    rows = [[str(score), f"{one:.1%}", f"{other:.1%}"] for score, one, other in zip(scores, pred, truth, strict=True)]
    return Drawn(
        name=name,
        title=title,
        caption=f"Distance of the distributions (emd_r2): {number(distance)}.",
        label=f"{title}: bar chart of predicted and true shares of the scores 1 to 10.",
        traces=bars,
        layout={
            "height": _HEIGHT,
            "showlegend": True,
            "barmode": "group",
            "hovermode": "x unified",
            "xaxis": {"dtick": 1},
            "yaxis": {"tickformat": ".0%"},
        },
        table=TextTable(["score", "predicted", "true"], rows),
    )
