"""The pass over the gradients, relative to torch's norms and to reading the gradients once."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from ava_pipeline.bench.steps import (
    CLIPPING,
    REST_US,
    STEP_OF_READING,
    STEP_OF_TOTAL_NORM,
    references,
    short_gradient_works,
)
from ava_pipeline.bench.workload import Workload, collector
from benchmarks.judging import Bench

_MAX_NORM = 1e9
_ROUNDS_OF_SHORT = 200


@pytest.mark.gate
def test_a_collected_step_over_get_total_norm(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """Norms of all groups, including the hand-off, cost no more than one total norm of torch."""
    with collector(workload, workload.optimizer(), tmp_path, 1) as telemetry:
        found = bench.ratio(lambda: telemetry.step(0), references(workload)["total_norm"])
    bench.judge(found, STEP_OF_TOTAL_NORM)


@pytest.mark.gate
def test_a_collected_step_over_reading_once(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """Reading every number once is the lower limit."""
    with collector(workload, workload.optimizer(), tmp_path, 1) as telemetry:
        found = bench.ratio(lambda: telemetry.step(0), references(workload)["read"])
    bench.judge(found, STEP_OF_READING)


@pytest.mark.informational
def test_the_pass_over_reading_once(bench: Bench, workload: Workload) -> None:
    """Only the pass."""
    works = references(workload)
    bench.judge(bench.ratio(works["pass"], works["read"]))


@pytest.mark.gate
def test_everything_but_the_pass(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """Measures, staging and hand-off, in microseconds."""
    with short_gradient_works(len(workload.gradients()), tmp_path) as works:
        times_s = bench.in_turn(works, _ROUNDS_OF_SHORT)
    bench.judge(float(np.median(times_s["step"] - times_s["pass"])) * 1e6, REST_US)


@pytest.mark.gate
def test_step_and_clip_over_torchs_clipping(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """Telemetry at every step is nearly free if the loop clips through it."""
    parameters = list(workload.model.parameters())
    with collector(workload, workload.optimizer(), tmp_path, 1) as telemetry:

        def step_and_clip() -> None:
            telemetry.step(0)
            telemetry.clip_grad_norm_(_MAX_NORM)

        found = bench.ratio(step_and_clip, lambda: nn.utils.clip_grad_norm_(parameters, _MAX_NORM))
    bench.judge(found, CLIPPING)
