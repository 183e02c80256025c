"""Weight snapshots on the disk: a kill leaves no broken file, older ones are repaired, and thinning keeps both ends."""

from itertools import pairwise
from pathlib import Path

import pytest

from ava_pipeline import open_run, recover_run
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.snapshots import SnapshotFile, read_header
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.snapshots import surplus_snapshots
from tests.scripts import run_script

pytestmark = pytest.mark.timeout(200)

KILLED = """
import os, signal, sys
import torch
from ava_pipeline import TelemetryCollector
from ava_pipeline.write import snapshots
from ava_pipeline.write.snapshots import SnapshotWriter
from tests.collect.models import tiny, train

serialize = SnapshotWriter._serialize

def die_in_the_middle(writer, weights, snapshot, path):
    serialize(writer, weights, snapshot, path)
    if snapshot.batch_idx == 2:
        if sys.argv[2] == "half":
            os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)

SnapshotWriter._serialize = die_in_the_middle
model, optimizer = tiny()
telemetry = TelemetryCollector(
    model, optimizer, sys.argv[1], collect_every_n=1, track_weight_snapshots=True, weight_snapshot_every_n=1
)
for _ in range(2):
    train(telemetry, model, optimizer, 1)
    while telemetry._recorder._snapshots.hand_over.waiting:
        pass
"""

RESUMED = """
import sys
from ava_pipeline import TelemetryCollector
from tests.collect.models import tiny, train
model, optimizer = tiny()
with TelemetryCollector(model, optimizer, sys.argv[1], collect_every_n=1) as telemetry:
    telemetry.load_state_dict({"batch_idx": 1, "epoch": 0})
    train(telemetry, model, optimizer, 1)
"""


@pytest.mark.parametrize("moment", ["half", "whole"])
def test_a_kill_in_the_middle_leaves_no_broken_snapshot(tmp_path: Path, moment: str) -> None:
    """What was half-written never has a final name, is reported, and is removed by `recover` or the next start."""
    run_script(KILLED, tmp_path, moment, code=-9)
    (snapshot,) = open_run(tmp_path).weight_snapshots()
    assert snapshot.batch_idx == 1
    read_header(snapshot.path)
    layout = RunLayout(tmp_path)
    assert len(list(layout.unfinished_snapshots.iterdir())) == 1
    if moment == "half":
        assert any("never finished" in note for note in recover_run(tmp_path, dry_run=True).notes)
        assert layout.unfinished_snapshots.exists()
        assert recover_run(tmp_path).is_complete
        assert open_run(tmp_path).manifest.attempt.weight_snapshots.written == 1
    else:
        run_script(RESUMED, tmp_path)
    assert not layout.unfinished_snapshots.exists()
    assert [one.batch_idx for one in open_run(tmp_path).weight_snapshots()] == [1]
    assert [str(one) for one in validate_run(tmp_path) if one.id != "run.killed"] == []


def test_a_damaged_snapshot_is_kept_in_damaged(tmp_path: Path) -> None:
    """And named; `recover` can be called again."""
    layout = RunLayout(tmp_path)
    layout.weight_snapshots.mkdir(parents=True)
    layout.csv("steps").write_text("batch_idx,epoch\n1,0\n")
    layout.weight_snapshot(0, 5).write_bytes(b"\xff" * 20)
    recovery = recover_run(tmp_path)
    (finding,) = recovery.lost
    assert finding.id == "snapshots.unreadable"
    assert finding.file == "telemetry/weight_snapshots/weights_epoch0_batch5.safetensors"
    assert "telemetry/damaged/weights_epoch0_batch5.safetensors" in str(finding.advice)
    assert (layout.damaged / "weights_epoch0_batch5.safetensors").read_bytes() == b"\xff" * 20
    assert recover_run(tmp_path).is_complete


@pytest.mark.parametrize("allowed", [2, 3, 6, 100])
def test_thinning_keeps_the_first_the_last_and_the_latest_half(allowed: int) -> None:
    """Whatever number is allowed, and however many there are; older ones lie further apart."""
    left: list[SnapshotFile] = []
    for batch in range(1, 1001):
        left.append(SnapshotFile(batch, 0, Path()))
        gone = surplus_snapshots(left, allowed)
        assert bool(gone) == (len(left) > allowed)
        left = [file for file in left if file not in gone]
        assert len(left) <= allowed
        assert (left[0].batch_idx, left[-1].batch_idx) == (1, batch)
    gaps = [after.batch_idx - before.batch_idx for before, after in pairwise(left)]
    assert gaps == sorted(gaps, reverse=True)
