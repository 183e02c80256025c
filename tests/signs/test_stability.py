"""The formulas of the trends and of the running median agree with SciPy's, which the package does without."""

import subprocess
import sys
import warnings

import numpy as np
import scipy.ndimage
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.signs.stability import kendall_tau, ratios_to_median, theil_sen_slope

random_values = st.floats(-1e30, 1e30)
tied_values = st.sampled_from([0.0, 1.0, 1.0 + 1e-12, 2.0])
series = st.one_of(
    arrays(np.float64, st.integers(2, 60), elements=random_values),
    arrays(np.float64, st.integers(2, 60), elements=tied_values),
    arrays(np.float64, st.integers(2, 60), elements=st.just(3.0)),
)


@given(series)
def test_kendalls_tau_is_that_of_scipy(values: Floats) -> None:
    """Ties included, to the last bit; nan if all values are equal."""
    expected = scipy.stats.kendalltau(np.arange(len(values)), values).statistic
    np.testing.assert_array_equal(kendall_tau(values), expected)


@given(series)
def test_the_slope_of_theil_and_sen_is_that_of_scipy(values: Floats) -> None:
    """To the last bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = scipy.stats.theilslopes(values, np.arange(len(values), dtype=np.float64)).slope
    assert theil_sen_slope(values) == expected


cells = st.one_of(
    st.floats(1e-20, 1e20), st.sampled_from([1.0, 1.0, 2.0, 100.0, 1e-4, 0.0, -1.0, float("nan"), float("inf")])
)


@settings(max_examples=200)
@given(arrays(np.float64, st.integers(0, 200), elements=cells), st.integers(2, 70))
def test_ratios_are_those_of_scipys_median_filter(values: Floats, window: int) -> None:
    """Every ratio beyond the bounds is computed, and equals the one of the filter."""
    expected = expected_ratios(values, window)
    found = ratios_to_median(values, window, below=1e-3, above=3.0)
    is_beyond = (expected > 3.0) | (expected < 1e-3)
    np.testing.assert_array_equal(found[is_beyond], expected[is_beyond])
    is_computed = np.isfinite(found)
    np.testing.assert_array_equal(found[is_computed], expected[is_computed])


def expected_ratios(values: Floats, window: int) -> Floats:
    """Each value over the median filter of the positive values before it, once there are 16."""
    positions = np.flatnonzero(np.isfinite(values) & (values > 0))
    ratios = np.full(len(values), np.nan)
    if len(positions) > 16:
        medians = scipy.ndimage.median_filter(values[positions], window, origin=(window - 1) // 2, mode="nearest")
        for row in np.flatnonzero(np.isfinite(values)):
            num_before = int((positions < row).sum())
            if num_before >= 16:
                ratios[row] = values[row] / medians[num_before - 1]
    return ratios


def test_ratios_of_many_rows_come_in_bounded_pieces() -> None:
    """Alternating rows are all unusual, so that every median is computed; their number passes the size of a piece."""
    values = np.tile([1.0, 100.0], 10_000)
    found = ratios_to_median(values, 63, above=3.0)
    np.testing.assert_array_equal(found[found > 3.0], expected_ratios(values, 63)[found > 3.0])
    assert np.isfinite(found).sum() > 9_000


LOADED = """
import sys
import numpy as np
import pyarrow as pa
import ava_pipeline.write.online_signs
from ava_pipeline.contract.manifest import Group
from ava_pipeline.signs.evidence import NO_ROWS, Evidence, TableValues
from ava_pipeline.signs.registry import all_findings
from ava_pipeline.signs.thresholds import Thresholds

batches = pa.Array.from_buffers(pa.int64(), 200, [None, pa.py_buffer(np.arange(1, 201))])
norms = pa.Array.from_buffers(pa.float64(), 200, [None, pa.py_buffer(np.geomspace(1, 1e3, 200))])
rows = TableValues(pa.Table.from_arrays([batches, batches, norms], ["batch_idx", "epoch", "overall"]))
groups = {"overall": Group(role="overall", parameters=("a",), trainable=True, learning_rates=("lr_group_0",))}
run = Evidence(norms=rows, rates=TableValues(NO_ROWS), steps=TableValues(NO_ROWS), groups=groups)
assert "exploding" in {finding.id for finding in all_findings(run, Thresholds())}
print(sorted({"scipy", "pandas"} & set(sys.modules)))
"""


def test_signs_load_neither_scipy_nor_pandas() -> None:
    """In a fresh interpreter, in which a finding is found."""
    done = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
