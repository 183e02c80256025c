"""A column as one line of text."""

import numpy as np

from ava_pipeline.read.arrays import Bools
from ava_pipeline.read.downsample import Floats

BARS = "▁▂▃▄▅▆▇█"
NOT_FINITE, ZERO, NOT_MEASURED = "!", "_", " "


def sparkline(values: Floats, is_null: Bools, width: int) -> str:
    """The greatest value of each stretch of rows as a bar on a logarithmic scale, the latest at the right.

    A stretch with nan or inf in it is `!`, one of nothing but 0 is `_`, one in which nothing was measured is empty.

    Args:
        values: [rows], oldest first.
        is_null: [rows] nothing was measured.
        width: at most so many characters.
    """
    if not len(values):
        return ""
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log(positive.min()), np.log(positive.max())) if len(positive) else (0.0, 0.0)
    parts = np.array_split(np.arange(len(values)), min(width, len(values)))
    return "".join(_cell(values[part][~is_null[part]], float(low), float(high)) for part in parts)


def _cell(values: Floats, low: float, high: float) -> str:
    if not len(values):
        return NOT_MEASURED
    if not np.isfinite(values).all():
        return NOT_FINITE
    greatest = float(values.max())
    if greatest <= 0:
        return ZERO
    share = (np.log(greatest) - low) / (high - low) if high > low else 0.5
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]
