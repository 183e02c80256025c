"""Moving the numbers of a step to the host."""

import pytest
import torch

from ava_pipeline.bench.workload import Workload
from ava_pipeline.collect.measures.measure import Reading
from ava_pipeline.collect.norms import NormPlan
from ava_pipeline.collect.staging import Staging
from benchmarks.judging import Bench

_NUM_STEPS = 100


@pytest.mark.informational
def test_staging_over_a_plain_copy(bench: Bench, workload: Workload) -> None:
    """CPU staging of a step's norms, rates and values."""
    gradients = workload.gradients()
    norms = NormPlan.of(gradients).measure(gradients)
    readings = [Reading(norms), Reading([1e-4, 1e-3]), Reading([0.0, None, torch.tensor(0.5)])]
    staging = Staging()

    def stage() -> None:
        for _ in range(_NUM_STEPS):
            staging.stage(readings).read()

    def copy() -> None:
        for _ in range(_NUM_STEPS):
            norms.clone()

    bench.judge(bench.ratio(stage, copy))


@pytest.mark.informational
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_staging_over_a_copy_that_waits(bench: Bench) -> None:
    """Starting a copy to a pinned slot, relative to `.cpu()`."""
    device = torch.device("cuda")
    norms = torch.rand(161, device=device)
    staging = Staging()
    bench.judge(bench.ratio(lambda: staging.stage([Reading(norms)]).read(), norms.cpu))
