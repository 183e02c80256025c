"""Columns that are added while a run is written: older rows stay, whatever happens to the disk or the process."""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Group, changed_groups, group_states, read_manifest
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write import run_writer
from ava_pipeline.write.channel import PendingStep
from ava_pipeline.write.setup import Setup
from tests.scripts import ROOT, run_script
from tests.write.feeding import PlainMeasure, Room, csv_batches, csv_rows, event_rows, parquet_batches, step

pytestmark = pytest.mark.timeout(120)


def setup(*columns: str) -> Setup:
    """A setup whose measure has these columns."""
    return Setup([PlainMeasure(columns=columns)], {})


def in_setup(batches: Sequence[int], what: Setup) -> list[PendingStep]:
    """Steps that a setup measured: its columns hold the batch, twice the batch, and so on."""
    num_columns = len(what.sources[0].run_table.run_column_names)
    return [
        replace(step(batch, *(float(batch * (place + 1)) for place in range(num_columns))), setup=what)
        for batch in batches
    ]


def written(room: Room, *parts: Sequence[PendingStep]) -> None:
    """Write steps through the worker, each part on its own."""
    room.worker.start()
    for part in parts:
        for one in part:
            room.offer(one)
        assert room.channel.flush(30)


def test_a_column_is_added_in_all_files(tmp_path: Path) -> None:
    """CSV and Parquet; the manifest declares it, and an event names the batch."""
    room = Room(tmp_path)
    written(room, [step(1), step(2)], in_setup([3, 4], setup("overall", "head", "extra")))
    assert room.worker.close(30, "finished").written == 4
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4]
    rows = csv_rows(RunLayout(tmp_path).csv("norms"))
    assert [row["extra"] for row in rows] == [None, None, 9.0, 12.0]
    assert pq.read_table(RunLayout(tmp_path).parquet("norms"))["extra"].to_pylist() == [None, None, 9.0, 12.0]
    (event,) = event_rows(tmp_path, "changed_columns")
    assert (event["batch_idx"], event["severity"]) == (3, "info")
    assert len(read_manifest(room.layout.manifest).attempts) == 1
    assert validate_run(tmp_path) == []


def test_columns_that_are_gone_are_null_from_there_on(tmp_path: Path) -> None:
    """And come back."""
    room = Room(tmp_path, measure=PlainMeasure(columns=("overall", "head", "extra")))
    fewer, again = setup("overall"), setup("extra", "overall")
    written(room, [step(1, 1.0, 2.0, 3.0)], in_setup([2], fewer), in_setup([3], again))
    room.worker.close(30, "finished")
    rows = csv_rows(RunLayout(tmp_path).csv("norms"))
    assert [(row["overall"], row["head"], row["extra"]) for row in rows] == [(1, 2, 3), (2, None, None), (6, None, 3)]
    assert validate_run(tmp_path) == []


def test_a_disk_that_refuses_costs_these_rows_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt ends; the next rows begin another one that adds the columns, and every row is counted."""
    room = Room(tmp_path)
    wider = setup("overall", "head", "extra")
    written(room, [step(1), step(2)])

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(run_writer, "add_columns", full)
        for one in in_setup([3], wider):
            room.offer(one)
        assert room.channel.flush(30)
    for one in in_setup([4, 5], wider):
        room.offer(one)
    stats = room.worker.close(30, "finished")
    assert (stats.written, stats.failed) == (4, 1)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 4, 5]
    (lost,) = event_rows(tmp_path, "failed_write")
    assert (lost["batch_idx"], lost["batch_idx_end"]) == (3, 3)
    assert os.strerror(errno.ENOSPC) in str(lost["message"])
    assert [one.status for one in read_manifest(room.layout.manifest).attempts] == ["killed", "finished"]
    assert validate_run(tmp_path) == []


KILLED = '''
import os, signal, sys
from pathlib import Path
from dataclasses import replace

from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.channel import TelemetryStats
from ava_pipeline.write.recover import recover_run
from tests.write.feeding import NO_STEPS, Room, csv_batches, parquet_batches, step
from tests.write.test_setups import in_setup, setup

TRACED = tuple(str(Path(sys.argv[2]) / name) for name in (
    "write/run_writer.py", "write/resumed_tables.py", "write/manifest_writer.py", "contract/files.py"))


def widen(root, on_line):
    """Two rows, then one with another column, each line of whose way calls `on_line`."""
    room = Room(root)
    room.files.open(NO_STEPS)
    assert room.files.write([step(1), step(2)]) == 0
    (third,) = in_setup([3], setup("overall", "head", "extra"))

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        if event == "line":
            on_line()
        return trace

    sys.settrace(trace)
    room.files.adopt(third.setup, third, TelemetryStats(collected=3, written=2, pending=1))
    sys.settrace(None)


lines = []
widen(Path(sys.argv[1]) / "first", lambda: lines.append(1))
num_lines = len(lines)
assert num_lines > 30, num_lines
for line in range(1, num_lines + 1, 3):
    root = Path(sys.argv[1]) / str(line)
    child = os.fork()
    if child == 0:
        left = [line]

        def die():
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        widen(root, die)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == signal.SIGKILL, (line, status)
    recovery = recover_run(root)
    assert recovery.is_complete, (line, recovery.to_text())
    assert csv_batches(root) == parquet_batches(root) == [1, 2], line
    assert validate_run(root) == [], (line, validate_run(root))
print(num_lines)
'''


def test_a_kill_at_any_line_of_it_loses_nothing(tmp_path: Path) -> None:
    """After `recover`, both files have every row and the same columns, and the run validates."""
    run_script(KILLED, tmp_path, ROOT / "ava_pipeline", deadline_s=100)


def group(*parameters: str, trainable: bool = True) -> Group:
    """A group of these parameters."""
    return Group(role="other", parameters=parameters, trainable=trainable)


def test_spans_of_a_group() -> None:
    """The states that a group had, by batch."""
    groups = {"a": group("x", "y"), "b": group("z")}
    groups = changed_groups(groups, {"a": group("x", "y", trainable=False), "b": group("z")}, 5)
    groups = changed_groups(groups, {"a": group("x"), "c": group("w")}, 9)
    groups = changed_groups(groups, {"a": group("x"), "b": group("z"), "c": group("w")}, 12)
    assert [state.first_batch for state in group_states(groups)] == [1, 5, 9, 12]
    assert [sorted(state.groups) for state in group_states(groups)] == [
        ["a", "b"],
        ["a", "b"],
        ["a", "c"],
        ["a", "b", "c"],
    ]
    assert [one.trainable for one in map(groups["a"].at, (4, 5, 8, 9)) if one] == [True, False, False, True]
    assert groups["b"].at(10) is None
    assert groups["c"].at(8) is None


def test_a_change_that_is_none_leaves_no_span() -> None:
    """A resume with the same groups, and one that goes back behind a change."""
    groups = {"a": group("x")}
    assert changed_groups(groups, {"a": group("x")}, 7) == groups
    changed = changed_groups(groups, {"a": group("x", trainable=False)}, 7)
    assert changed_groups(changed, {"a": group("x")}, 4) == groups
