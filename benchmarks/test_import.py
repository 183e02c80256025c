"""What a script pays for `import ava_pipeline`."""

import numpy as np
import pytest

from ava_pipeline.bench.ends import IMPORT_S, import_works
from benchmarks.judging import Bench

_ROUNDS = 11


@pytest.mark.gate
def test_import_beyond_the_interpreter(bench: Bench) -> None:
    """In seconds, between fresh interpreters that import it and that do not."""
    times_s = bench.in_turn(import_works(), _ROUNDS)
    bench.judge(float(np.median(times_s["import"] - times_s["bare"])), IMPORT_S)
