"""What SIGKILL may cost: rows handed over in the last flush interval and one second more, and no others."""

import pytest

from tests.scripts import run_script

pytestmark = pytest.mark.timeout(120)

# Importing takes longer than all else: one process imports and has no thread; its children are killed, many at a time.
KILLS = """
import math, os, random, signal, struct, sys, time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.stored import read_stored
from tests.write.feeding import Room, step

NUM_TURNS, NUM_AT_ONCE = 10, 20
# Of training: too slow for a full batch to wake the worker before its timer.
PACES_S = (0.005, 0.02, 0.1)
FLUSH_INTERVALS_S = (0.05, 0.25, 0.5)
HANDED_OVER = struct.Struct("<qd")
moments = random.Random(int(sys.argv[2]))

@dataclass
class Life:
    root: Path
    flush_interval_s: float
    pace_s: float
    fsync: bool
    over_bound_s: float
    child: int = 0
    report: int = 0
    first: bytes = b""

    @property
    def bound_s(self):
        return self.flush_interval_s + 1

    @property
    def lives_s(self):
        return self.bound_s + self.over_bound_s

def life(root, number):
    fsync = number % 10 == 0
    flush_interval_s = max(FLUSH_INTERVALS_S) if fsync else moments.choice(FLUSH_INTERVALS_S)  # a disk syncs slowly
    return Life(root, flush_interval_s, moments.choice(PACES_S), fsync, moments.uniform(0.05, 0.7))

def feed(one, report):
    room = Room(one.root, flush_interval_s=one.flush_interval_s, fsync=one.fsync)
    room.worker.start()
    room.offer(step(1))
    room.channel.flush()  # the files are open; from here on nobody flushes
    for batch in count(2):
        room.offer(step(batch, float(batch), 1 / batch))
        os.write(report, HANDED_OVER.pack(batch, time.monotonic()))
        time.sleep(one.pace_s)

def begin(one):
    one.report, writing = os.pipe()
    one.child = os.fork()
    if one.child == 0:
        feed(one, writing)
    os.close(writing)
    return one

def killed(child):
    at = time.monotonic()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return at

def check(one, at, reported):
    due = [batch for batch, handed_over in HANDED_OVER.iter_unpack(reported) if handed_over < at - one.bound_s]
    assert due, "killed before anything was due"
    layout = RunLayout(one.root)
    lines = layout.csv("norms").read_text().rpartition("\\n")[0].splitlines()[1:]
    stored = read_stored(layout.parquet("norms"), layout.journal("norms")).rows.to_pydict()
    rows = {
        "csv": [(int(batch), float(overall), float(head)) for batch, _, overall, head in
                (line.split(",") for line in lines)],
        "journal": list(zip(stored["batch_idx"], stored["overall"], stored["head"])),
    }
    for kind, found in rows.items():
        batches = [batch for batch, *_ in found]
        assert batches == sorted(set(batches)), (one, kind, "twice, or out of order")
        assert set(due) <= set(batches), (one, kind, sorted(set(due) - set(batches)))
        altered = [row for row in found[1:] if row[1] != row[0] or not math.isclose(row[2], 1 / row[0], rel_tol=1e-6)]
        assert not altered, (one, kind, altered)

def wait_and_kill(alive):
    for one in alive:
        one.first = os.read(one.report, HANDED_OVER.size)  # it is at work
    began = time.monotonic()
    alive.sort(key=lambda one: one.lives_s, reverse=True)
    while alive:
        time.sleep(max(0.0, began + alive[-1].lives_s - time.monotonic()))
        one = alive.pop()
        at = killed(one.child)
        with os.fdopen(one.report, "rb") as report:
            check(one, at, one.first + report.read())

root = Path(sys.argv[1])
Room(root / "warm").write([1])
for turn in range(NUM_TURNS):
    alive = [begin(life(root / f"{turn}-{number}", number)) for number in range(NUM_AT_ONCE)]
    try:
        wait_and_kill(alive)
    finally:  # a check that fails leaves nobody behind
        for one in alive:
            killed(one.child)
"""


def test_rows_that_nobody_flushed_are_readable_when_the_bound_has_passed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Two hundred processes that only step are killed at any moment: the worker's own timer has saved what is older.

    At any pace, flush interval and with fsync; no row is there twice, out of order or altered.
    """
    run_script(KILLS, tmp_path_factory.mktemp("killed"), 7, deadline_s=100)
