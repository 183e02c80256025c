"""What a weight snapshot costs the training thread."""

from pathlib import Path

import pytest
import torch

from ava_pipeline.bench.results import Target
from ava_pipeline.bench.workload import Workload
from ava_pipeline.collect.snapshots import WeightSnapshots
from ava_pipeline.write.event_log import EventLog
from benchmarks.judging import Bench

OF_COPY = Target(1.2)


@pytest.mark.gate
def test_a_snapshot_over_one_copy_of_the_weights(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """Finding the tensors and copying them, relative to copying every tensor of `state_dict` to memory that exists."""
    model = workload.model
    taken = WeightSnapshots(lambda: [model], EventLog(tmp_path))
    weights = [tensor.detach() for tensor in model.state_dict().values()]
    copies = [torch.empty_like(tensor) for tensor in weights]

    def snapshot() -> None:
        assert taken.take(1, 0)
        pending, taken.hand_over.waiting = taken.hand_over.waiting, None
        assert pending is not None
        pending.staged.free()

    def copy() -> None:
        for to, tensor in zip(copies, weights, strict=True):
            to.copy_(tensor)

    bench.judge(bench.ratio(snapshot, copy), OF_COPY)
