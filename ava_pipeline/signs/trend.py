"""A steady trend, told from noise."""

from typing import NamedTuple

import numpy as np
import scipy  # which loads scipy.stats, that takes a second, where it is first used

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


def trend_of(values: Values, least_rise: float) -> Trend | None:
    """The trend of finite values; None where they are too few, or do not rise.

    Medians of 32 blocks stand for the rows, so that single batches weigh little and a million rows cost little.

    Args:
        values: in the order of time.
        least_rise: smaller rises are not looked at closely: half of it must lie between the first and last quarter.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < _LEAST_ROWS:
        return None
    length = len(finite) // _NUM_BLOCKS
    blocks = np.median(finite[-length * _NUM_BLOCKS :].reshape(_NUM_BLOCKS, length), axis=1)
    quarter = _NUM_BLOCKS // 4
    if np.median(blocks[-quarter:]) - np.median(blocks[:quarter]) <= least_rise / 2:
        return None
    time = np.arange(_NUM_BLOCKS, dtype=np.float64)
    slope = float(scipy.stats.theilslopes(blocks, time).slope)
    return Trend(float(scipy.stats.kendalltau(time, blocks).statistic), slope * (_NUM_BLOCKS - 1))
