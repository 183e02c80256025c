"""Training that is repeatedly killed while it writes telemetry, and resumed."""

from pathlib import Path

import pytest

from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.validate.validate import validate_run
from tests.scripts import run_script
from tests.train.small_runs import BATCHES_PER_EPOCH, config_file
from tests.write.feeding import csv_rows

pytestmark = pytest.mark.timeout(240)

# Importing takes longer than all else: one process imports, and its children train and are killed.
TRAININGS = """
import os, signal, sys
import torch
import ava_pipeline.train.job
from ava_pipeline.cli import main
from ava_pipeline.train.batch_step import BatchStep

torch.set_num_threads(1)
write, observe, num_batches = os.pwrite, BatchStep.observe, 0

def train(last_batch):
    '''Train, and die in the middle of the first piece of telemetry that is written behind the process's n-th batch.'''
    def count(*arguments, **options):
        global num_batches
        observe(*arguments, **options)
        num_batches += 1
        if num_batches == last_batch:
            os.pwrite = write_half_and_die

    BatchStep.observe = count
    try:
        main()
    except SystemExit as end:
        os._exit(end.code)

def write_half_and_die(descriptor, data, offset):
    write(descriptor, data[: len(data) // 2], offset)
    os.kill(os.getpid(), signal.SIGKILL)

settings = ("telemetry.flush_interval_s=0.001", "train.accumulate=1")
sys.argv = ["ava-pipeline", "train", sys.argv[1], "--resume", *(f"--set={setting}" for setting in settings)]
for last_batch in (2, BATCHES + 2, 0):
    child = os.fork()
    if child == 0:
        train(last_batch)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if last_batch else 0), (last_batch, status)
"""


def test_trainings_killed_while_they_write_leave_whole_tables_when_resumed(tmp_path: Path) -> None:
    """Kills before and after the first checkpoint; the last attempt finishes, and the run validates clean."""
    run_script(TRAININGS.replace("BATCHES", str(BATCHES_PER_EPOCH)), config_file(tmp_path), deadline_s=200)
    root = tmp_path / "run"
    assert [str(one) for one in validate_run(root)] == []
    attempts = read_manifest(root / "telemetry" / "manifest.json").attempts
    *killed, last = (one.status for one in attempts)
    assert set(killed) == {"killed"}  # the first may be killed before it has a manifest
    assert last == "finished"
    assert attempts[-1].resumed_from == BATCHES_PER_EPOCH
    for path in (root / "telemetry").glob("*.parquet"):
        rows = read_parquet(path)
        assert rows.column("batch_idx").to_pylist() == list(range(1, 2 * BATCHES_PER_EPOCH + 1))
        assert len(csv_rows(path.with_suffix(".csv"))) == rows.num_rows
