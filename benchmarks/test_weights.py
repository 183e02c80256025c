"""What is recorded of the weights, relative to reading them once."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ava_pipeline.bench.results import Target
from ava_pipeline.bench.workload import Workload, collector
from benchmarks.judging import Bench

NORMS_AND_DELTAS = Target(4.0)


@pytest.mark.gate
def test_weight_norms_and_deltas_added_to_a_collected_step(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """A collected step with track_weight_delta minus one without, over the sum of all weights in one tensor."""
    flat = torch.cat([weight.detach().reshape(-1) for weight in workload.model.parameters()])
    with (
        collector(workload, workload.optimizer(), tmp_path / "on", 1, track_weight_delta=True) as on,
        collector(workload, workload.optimizer(), tmp_path / "off", 1) as off,
    ):
        times_s = bench.in_turn({"on": partial(on.step, 0), "off": partial(off.step, 0), "read": flat.sum})
    added_s = float(np.median(times_s["on"]) - np.median(times_s["off"]))
    bench.judge(added_s / float(np.median(times_s["read"])), NORMS_AND_DELTAS)
