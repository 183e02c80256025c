"""A steady trend, told from noise."""

from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, theilslopes

from ava_pipeline.signs.figures import Values

_NUM_BLOCKS = 32
_LEAST_ROWS = 4 * _NUM_BLOCKS


class Trend(NamedTuple):
    """How steadily something changed, and by how much.

    Attributes:
        tau: Kendall's tau of value and time, -1..1; as in Mann's test of trend (1945), doi:10.2307/1907187.
        change: from the first row to the last, by the slope of Theil and Sen (1968),
            doi:10.1080/01621459.1968.10480934.
    """

    tau: float
    change: float


def trend_of(values: Values) -> Trend | None:
    """The trend of finite values; None where they are too few.

    Medians of 32 blocks stand for the rows, so that single batches weigh little and a million rows cost little.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < _LEAST_ROWS:
        return None
    blocks = np.array([np.median(block) for block in np.array_split(finite, _NUM_BLOCKS)])
    time = np.arange(_NUM_BLOCKS, dtype=np.float64)
    if np.ptp(blocks) == 0.0:
        return Trend(0.0, 0.0)
    slope = float(theilslopes(blocks, time).slope)
    return Trend(float(kendalltau(time, blocks).statistic), slope * (_NUM_BLOCKS - 1))
