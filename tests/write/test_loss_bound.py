"""What SIGKILL may cost: rows handed over in the last flush interval and one second more, and no others."""

import pytest

from tests.scripts import run_script

pytestmark = pytest.mark.timeout(120)

# Importing takes longer than all else: one process imports, and its children are killed, many at a time.
KILLS = """
import math, os, random, signal, struct, sys, time
from itertools import count
from pathlib import Path
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.stored import read_stored
from tests.write.feeding import Room, step

FLUSH_INTERVAL_S = 0.25
BOUND_S = FLUSH_INTERVAL_S + 1
TOLD = struct.Struct("<qd")

def feed(root, told):
    room = Room(root, flush_interval_s=FLUSH_INTERVAL_S)
    room.worker.start()
    room.offer(step(1))
    room.channel.flush()  # the files are open; from here on nobody flushes
    for batch in count(2):
        room.offer(step(batch, float(batch), 1 / batch))
        os.write(told, TOLD.pack(batch, time.monotonic()))
        time.sleep(0.02)  # the pace of training: too slow for a full batch to wake the worker before its timer

def begin(root):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        feed(root, writing)
    os.close(writing)
    return root, child, reading

def killed(child):
    at = time.monotonic()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return at

def check(root, at, told):
    due = [batch for batch, handed_over in TOLD.iter_unpack(told) if handed_over < at - BOUND_S]
    assert due, "killed before anything was due"
    layout = RunLayout(root)
    lines = layout.csv("norms").read_text().rpartition("\\n")[0].splitlines()[1:]
    stored = read_stored(layout.parquet("norms"), layout.journal("norms")).rows.to_pydict()
    rows = {
        "csv": [(int(batch), float(overall), float(head)) for batch, _, overall, head in
                (line.split(",") for line in lines)],
        "journal": list(zip(stored["batch_idx"], stored["overall"], stored["head"])),
    }
    for kind, found in rows.items():
        batches = [batch for batch, *_ in found]
        assert batches == sorted(set(batches)), (kind, "twice, or out of order")
        assert set(due) <= set(batches), (kind, sorted(set(due) - set(batches)))
        altered = [row for row in found[1:] if row[1] != row[0] or not math.isclose(row[2], 1 / row[0], rel_tol=1e-6)]
        assert not altered, (kind, altered)

def wait_and_kill(children):
    for _, _, reading in children:
        os.read(reading, TOLD.size)  # it is at work
    began = time.monotonic()
    lives_s = sorted(moments.uniform(1.3, 2) for _ in children)
    while children:
        time.sleep(max(0.0, began + lives_s.pop(0) - time.monotonic()))
        root, child, reading = children.pop()
        at = killed(child)
        with os.fdopen(reading, "rb") as told:
            check(root, at, told.read())

moments = random.Random(int(sys.argv[2]))
for turn in range(3):
    children = [begin(Path(sys.argv[1]) / f"{turn}-{number}") for number in range(20)]
    try:
        wait_and_kill(children)
    finally:  # a check that fails leaves nobody behind
        for _, child, _ in children:
            killed(child)
"""


def test_rows_that_nobody_flushed_are_readable_when_the_bound_has_passed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Sixty processes that only step are killed at any moment: the worker's own timer has saved what is older.

    No row is there twice, out of order or altered.
    """
    run_script(KILLS, tmp_path_factory.mktemp("killed"), 7, deadline_s=100)
