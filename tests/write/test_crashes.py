"""SIGKILL at any line of the code that changes older files leaves the old or the new state."""

from pathlib import Path

import pytest

from tests.scripts import ROOT, run_script

pytestmark = pytest.mark.timeout(240)

# Importing is slow: one process imports, and its children are killed.
KILLING = '''
import os, signal, sys
from pathlib import Path

TRACED_FILES = tuple(str(Path(sys.argv[2]) / name) for name in NAMES)
assert all(Path(file).is_file() for file in TRACED_FILES), TRACED_FILES


def kill_at(step):
    """Die at the step-th line of the modules that write."""
    left = step

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(TRACED_FILES):
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
'''

CRASHING = (
    """
# The files that change something on the disk; the others only read.
NAMES = ("contract/files.py", "contract/stored.py", "contract/parquet.py", "write/older_rows.py", "write/writers.py")
"""
    + KILLING
    + '''
import pyarrow as pa

from ava_pipeline.contract.journal import JournalWriter
from ava_pipeline.contract.parquet import same_bits, write_parquet
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.write.recover import recover_run

FIELDS = {"batch_idx": pa.int64(), "norm": pa.float32()}


def rows(first, last):
    values = {"batch_idx": list(range(first, last)), "norm": [float("nan")] * (last - first)}
    return pa.RecordBatch.from_pydict(values, schema=pa.schema(FIELDS))


def prepare(root):
    """Two rows in Parquet, two batches in a journal, and a torn CSV line."""
    folder = root / "telemetry"
    folder.mkdir(parents=True)
    write_parquet(folder / "steps.parquet", pa.Table.from_batches([rows(1, 3)]))
    journal = JournalWriter(folder / "steps.journal", pa.schema(FIELDS), rows_before=2)
    journal.write(rows(3, 4))
    journal.write(rows(4, 6))
    journal.close()
    (folder / "steps.csv").write_bytes(b"batch_idx,norm\\n" + b"".join(b"%d,nan\\n" % n for n in range(1, 6)) + b"6,n")


def check(root):
    folder = root / "telemetry"
    found = read_stored(folder / "steps.parquet", folder / "steps.journal")
    assert same_bits(found.rows, pa.Table.from_batches([rows(1, 6)])), found.rows
    lines = (folder / "steps.csv").read_bytes().split(b"\\n")
    assert lines[:6] == [b"batch_idx,norm", *(b"%d,nan" % n for n in range(1, 6))], lines
    assert len(lines) == 7 and lines[6] in {b"6,n", b""}, lines
    if not lines[6]:
        assert (folder / "damaged" / "steps.csv.end").read_bytes() == b"6,n"


step, status = 0, 1
while status:
    step += 1
    root = Path(sys.argv[1]) / str(step)
    prepare(root)
    child = os.fork()
    if child == 0:
        kill_at(step)
        recover_run(root)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in {0, signal.SIGKILL}, status
    check(root)
    if step % 7 == 0 or status == 0:
        recover_run(root)
        assert not (root / "telemetry" / "steps.journal").exists()
        check(root)
print(step)
'''
)

WIDENING = (
    """
# Everything that opening, writing and closing do on the disk.
NAMES = ("contract/files.py", "contract/stored.py", "contract/parquet.py", "contract/journal.py", "write/older_rows.py",
         "write/writers.py", "write/resumed_tables.py", "write/attempts.py", "write/run_writer.py")
"""
    + KILLING
    + '''
import logging

from tests.write.feeding import (
    NO_STEPS, PlainMeasure, Room, csv_batches, csv_rows, leave_as_killed, parquet_batches, step,
)

logging.disable(logging.CRITICAL)
os.environ["PATH"] = ""  # so that git is not called
EVERY_NTH_LINE = 37
COLUMNS = ("overall", "head", "extra")


def go_on(root, trace=lambda: None):
    """One attempt with another column, behind batch 6."""
    room = Room(root, resumed_from=6, measure=PlainMeasure(columns=COLUMNS))
    trace()
    room.files.open(NO_STEPS)
    assert room.files.write([step(7, 7.0, 0.5, 1.0)]) == 0
    room.close()


def prepare(root):
    """Four rows that were finished, and three that were not."""
    first = Room(root)
    first.write([1, 2, 3, 4])
    first.close()
    second = Room(root, resumed_from=4)
    second.write([5, 6, 7])
    leave_as_killed(second)


def files_of_lines(root):
    """The file of each line that an attempt comes to, in order."""
    files = []

    def trace(frame, event, argument):
        file = frame.f_code.co_filename
        if not file.startswith(TRACED_FILES):
            return None
        if event == "line":
            files.append(file)
        return trace

    prepare(root)
    go_on(root, lambda: sys.settrace(trace))
    sys.settrace(None)
    return files


files_of_lines(Path(sys.argv[1]) / "first")  # the first time, more is executed
files = files_of_lines(Path(sys.argv[1]) / "second")
WIDENS = "write/resumed_tables.py"
lines = [line for line, file in enumerate(files, start=1) if line % EVERY_NTH_LINE == 0 or file.endswith(WIDENS)]
for line in lines:
    root = Path(sys.argv[1]) / str(line)
    prepare(root)
    child = os.fork()
    if child == 0:
        go_on(root, lambda: kill_at(line))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == signal.SIGKILL, status
    go_on(root)
    assert csv_batches(root) == parquet_batches(root) == list(range(1, 8)), (line, csv_batches(root))
    rows = csv_rows(root / "telemetry" / "norms.csv")
    assert [row["extra"] for row in rows] == [None] * 6 + [1.0], (line, rows)
    assert [row["overall"] for row in rows] == list(range(1, 8)), (line, rows)
print(len(lines))
'''
)


def test_a_kill_at_any_line_of_recovery_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    """A process is killed at the first line of the files that write, at the second, and so on, until one completes.

    After each kill, every row is read once, with the same bits, and no whole line of the CSV file has changed; another
    recovery leads to the new state.
    """
    ended = run_script(CRASHING, tmp_path, ROOT / "ava_pipeline", deadline_s=200)
    assert int(ended.stdout) > 100


def test_a_kill_anywhere_in_a_resume_with_another_column_loses_no_row(tmp_path: Path) -> None:
    """A process is killed at each line that adds a column, and at every 37th of opening, writing and closing.

    After each kill, the next attempt continues: every row once, in order, older ones empty in the new column.
    """
    ended = run_script(WIDENING, tmp_path, ROOT / "ava_pipeline", deadline_s=200)
    assert int(ended.stdout) > 50
