"""Attempts in one run directory: the tables hold the latest attempt, and no row is ever deleted."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_pipeline.contract.journal import JournalReader
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.write.older_rows import count_rows, table_names
from tests.write.feeding import (
    NO_STEPS,
    NORMS,
    PlainMeasure,
    Room,
    csv_batches,
    csv_rows,
    event_rows,
    leave_as_killed,
    parquet_batches,
    step,
    steps,
)

pytestmark = pytest.mark.timeout(60)


def attempt(root: Path, batches: range, *, resumed_from: int = 0, is_killed: bool = False) -> None:
    """Run one attempt that writes a row per batch, and close it or leave it as a kill does."""
    room = Room(root, resumed_from=resumed_from)
    room.write(batches)
    if is_killed:
        leave_as_killed(room)
    else:
        room.close()


def assert_accounts_balance(root: Path) -> None:
    """Check for each file: the rows that attempts wrote, less the superseded ones, are the rows in the file."""
    layout = RunLayout(root)
    expected: Counter[str] = Counter()
    for one in read_manifest(layout.manifest).attempts:
        expected.update(one.rows)
        expected.subtract(one.set_aside)
    counts = count_rows(layout, table_names(layout))
    assert {name: expected[name] for name in counts} == counts


def superseded(root: Path) -> Iterator[object]:
    """Every batch in a CSV file of norms under superseded/."""
    for path in (RunLayout(root).telemetry / "superseded").rglob("norms*.csv"):
        yield from (row["batch_idx"] for row in csv_rows(path))


def test_a_fresh_attempt_supersedes_all_older_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No row is deleted, the tables start over, and one warning says how to continue the run instead."""
    attempt(tmp_path, range(1, 6))
    attempt(tmp_path, range(1, 3))
    layout = RunLayout(tmp_path)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2]
    assert list(superseded(tmp_path)) == [1, 2, 3, 4, 5]
    assert pq.read_table(layout.superseded(2) / "norms.parquet").num_rows == 5
    assert read_manifest(layout.manifest).attempt.set_aside == {"norms.csv": 5, "norms.parquet": 5}
    assert len([message for message in caplog.messages if "load_state_dict()" in message]) == 1
    assert_accounts_balance(tmp_path)


def test_a_resume_supersedes_the_rows_after_the_checkpoint(tmp_path: Path) -> None:
    """The tables continue without a gap or a repetition."""
    attempt(tmp_path, range(1, 11))
    attempt(tmp_path, range(7, 13), resumed_from=6)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == list(range(1, 13))
    assert list(superseded(tmp_path)) == [7, 8, 9, 10]
    assert_accounts_balance(tmp_path)


def test_a_killed_attempt_is_counted_by_its_files(tmp_path: Path) -> None:
    """Its manifest is older than its rows; the next attempt's manifest has the right counts."""
    attempt(tmp_path, range(1, 9), is_killed=True)
    assert read_manifest(RunLayout(tmp_path).manifest).attempt.rows == {}
    attempt(tmp_path, range(6, 8), resumed_from=5)
    first, second = read_manifest(RunLayout(tmp_path).manifest).attempts
    assert (first.status, first.rows["norms.csv"], first.rows["norms.parquet"]) == ("killed", 8, 8)
    assert second.set_aside == {"norms.csv": 3, "norms.parquet": 3}
    assert_accounts_balance(tmp_path)


@settings(max_examples=30, deadline=None)
@given(
    later=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 6), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_any_sequence_of_resumes(later: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """After any resumes of finished or killed attempts, the tables hold the latest rows, and no row is lost."""
    root = tmp_path_factory.mktemp("run")
    attempt(root, range(1, 6))
    expected = list(range(1, 6))
    ever = Counter(expected)
    for back, num_batches, is_killed in later:
        resumed_from = min(back, max(expected, default=0))
        expected = [batch for batch in expected if batch <= resumed_from]
        new = range(resumed_from + 1, resumed_from + 1 + num_batches)
        room = Room(root, resumed_from=resumed_from)
        room.write(new)
        assert_accounts_before_rows(room)
        if is_killed:
            leave_as_killed(room)
        else:
            room.close()
        expected += new
        ever.update(new)
        assert csv_batches(root) == parquet_batches(root) == expected
        assert Counter([*expected, *superseded(root)]) == ever
    attempt(root, range(0), resumed_from=max(expected, default=0))
    assert_accounts_balance(root)
    assert event_rows(root, "damaged_file") == []


def assert_accounts_before_rows(room: Room) -> None:
    """Check that the manifest of an attempt that has just begun balances without its rows."""
    expected: Counter[str] = Counter()
    for one in read_manifest(room.layout.manifest).attempts:
        expected.update(one.rows)
        expected.subtract(one.set_aside)
    number = room.files._tables[0].num_rows["norms.csv"]
    assert expected["norms.csv"] == len(csv_batches(room.root)) - number


def test_a_damaged_journal_is_kept_and_its_batches_are_reported(tmp_path: Path) -> None:
    """Every readable row is saved, the original is in damaged/, and events cover every missing row."""
    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    for batch in range(1, 6):
        room.files.write(steps([batch]))
    leave_as_killed(room)
    journal = room.layout.journal("norms")
    content = bytearray(journal.read_bytes())
    content[-len(content) // 8 * 3] ^= 0xFF
    journal.write_bytes(content)
    reader = JournalReader(journal)
    assert list(reader.batches())
    assert reader.damage
    attempt(tmp_path, range(6, 8), resumed_from=5)
    found = parquet_batches(tmp_path)
    missing = set(range(1, 8)) - set(found)
    assert missing
    assert (room.layout.telemetry / "damaged" / "norms.journal").read_bytes() == content
    events = event_rows(tmp_path, "damaged_file")
    assert "norms.journal" in str(events[0]["message"])
    for batch in missing:
        assert any(int(str(row["batch_idx"])) <= int(str(batch)) <= int(str(row["batch_idx_end"])) for row in events)
    assert_accounts_balance(tmp_path)


def test_a_torn_last_line_and_a_torn_frame_are_reported_and_cut(tmp_path: Path) -> None:
    """Half-written data from a kill is neither joined to the next row nor ignored without an event."""
    attempt(tmp_path, range(1, 4), is_killed=True)
    layout = RunLayout(tmp_path)
    with layout.csv("norms").open("ab") as file:
        file.write(b"4,0,0.")
    with layout.journal("norms").open("ab") as file:
        file.write(b"AVAjrnR1 and no more")
    attempt(tmp_path, range(4, 6), resumed_from=3)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4, 5]
    events = event_rows(tmp_path, "damaged_file")
    assert [str(row["message"]).split(":")[0] for row in events] == ["norms.csv", "norms.journal"]
    assert {(row["batch_idx"], row["batch_idx_end"]) for row in events} == {(3, 3)}
    assert_accounts_balance(tmp_path)


@pytest.mark.parametrize("left", [b"", b"AVAjrnS1"], ids=["nothing", "half a header"])
def test_a_journal_of_a_process_killed_at_once_does_not_block_the_run(left: bytes, tmp_path: Path) -> None:
    """A kill between creating the journal and writing its first frame costs nothing."""
    layout = RunLayout(tmp_path)
    layout.telemetry.mkdir()
    layout.journal("norms").write_bytes(left)
    attempt(tmp_path, range(1, 4))
    assert not (layout.telemetry / "superseded").exists()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3]
    assert_accounts_balance(tmp_path)


def test_a_parquet_file_that_cannot_be_read_is_kept_and_does_not_end_telemetry(tmp_path: Path) -> None:
    """New rows are written, the damaged file is in damaged/, and an event reports its rows as missing."""
    attempt(tmp_path, range(1, 4))
    layout = RunLayout(tmp_path)
    content = layout.parquet("norms").read_bytes()[:-20]
    layout.parquet("norms").write_bytes(content)
    attempt(tmp_path, range(4, 6), resumed_from=3)
    assert parquet_batches(tmp_path) == [4, 5]
    assert csv_batches(tmp_path) == [1, 2, 3, 4, 5]
    assert (layout.telemetry / "damaged" / "norms.parquet").read_bytes() == content
    events = event_rows(tmp_path, "damaged_file")
    assert any((row["batch_idx"], row["batch_idx_end"]) == (1, 3) for row in events)
    assert_accounts_balance(tmp_path)


FOREIGN = {"summary.csv": b"epoch,loss\nfirst,0.5\nlast", "mine.parquet": b"no Parquet", "mine.csv": b"1,2\n3,4\n"}


def write_foreign_files(root: Path) -> Callable[[], bool]:
    """Write files of the user into the telemetry folder; the returned function checks that they are unchanged."""
    paths = {RunLayout(root).telemetry / name: content for name, content in FOREIGN.items()}
    for path, content in paths.items():
        path.write_bytes(content)
    return lambda: all(path.is_file() and path.read_bytes() == content for path, content in paths.items())


@pytest.mark.parametrize("has_manifest", [True, False], ids=["manifest", "lost manifest"])
@pytest.mark.parametrize("resumed_from", [0, 2])
def test_files_that_are_not_tables_of_the_run_are_left_alone(
    resumed_from: int, *, has_manifest: bool, tmp_path: Path
) -> None:
    """Files that a user puts beside the tables do not end telemetry, and are not moved, cut or counted."""
    attempt(tmp_path, range(1, 6))
    layout = RunLayout(tmp_path)
    is_unchanged = write_foreign_files(tmp_path)
    if not has_manifest:
        layout.manifest.unlink()
    attempt(tmp_path, range(resumed_from + 1, 5), resumed_from=resumed_from)
    assert is_unchanged()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4]
    assert sorted(map(int, map(str, superseded(tmp_path)))) == list(range(resumed_from + 1, 6))
    counted = {name for one in read_manifest(layout.manifest).attempts for name in {**one.rows, **one.set_aside}}
    assert counted <= {"norms.csv", "norms.parquet", "events.csv"}
    assert event_rows(tmp_path, "damaged_file") == []
    assert_accounts_balance(tmp_path)


def test_a_table_that_only_an_earlier_attempt_measured_belongs_to_the_run(tmp_path: Path) -> None:
    """Its rows behind the checkpoint are superseded, even two attempts later."""
    rates = NORMS.model_copy(update={"name": "rates"})
    first = Room(tmp_path, measure=PlainMeasure(rates))
    first.write(range(1, 6))
    first.close()
    attempt(tmp_path, range(5, 7), resumed_from=4)
    attempt(tmp_path, range(3, 4), resumed_from=2)
    assert [row["batch_idx"] for row in csv_rows(RunLayout(tmp_path).csv("rates"))] == [1, 2]


def test_rows_that_were_removed_are_reported(tmp_path: Path) -> None:
    """A file with fewer rows than were written is reported."""
    attempt(tmp_path, range(1, 6))
    RunLayout(tmp_path).csv("norms").write_text("batch_idx,epoch,overall,head\n1,0,1,0.5\n")
    attempt(tmp_path, range(6, 8), resumed_from=5)
    (event,) = event_rows(tmp_path, "damaged_file")
    assert "norms.csv: it holds 4 fewer rows" in str(event["message"])
    assert (event["batch_idx"], event["batch_idx_end"]) == (1, 5)
    assert_accounts_balance(tmp_path)


@pytest.mark.parametrize("resumed_from", [0, 3])
def test_a_damaged_line_of_csv_is_kept_and_does_not_end_telemetry(resumed_from: int, tmp_path: Path) -> None:
    """The rows around it stay, the original file is in damaged/, and an event names the line."""
    attempt(tmp_path, range(1, 4))
    layout = RunLayout(tmp_path)
    lines = layout.csv("norms").read_bytes().splitlines(keepends=True)
    content = b"".join([*lines[:2], b"what is this\n", *lines[2:]])
    layout.csv("norms").write_bytes(content)
    attempt(tmp_path, range(resumed_from + 1, 6), resumed_from=resumed_from)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4, 5]
    assert (layout.damaged / "norms.csv").read_bytes() == content
    (event,) = event_rows(tmp_path, "damaged_file")
    assert "norms.csv: 1 line does not begin with a batch; the first is b'what is this" in str(event["message"])
    assert_accounts_balance(tmp_path)


@pytest.mark.parametrize("name", ["norms", "events"])
def test_a_csv_file_that_another_program_saved_again_does_not_end_telemetry(name: str, tmp_path: Path) -> None:
    """The whole file is kept in damaged/ and starts over; its rows are reported as missing, and Parquet lost none."""
    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    assert room.files.write([*steps([1, 2]), step(3, math.inf, 0.5)]) == 0  # which is an event
    room.close()
    path = room.layout.csv(name)
    header, rows = path.read_bytes().split(b"\n", 1)
    content = b'"' + header.replace(b",", b'","') + b'"\n' + rows
    path.write_bytes(content)
    attempt(tmp_path, range(4, 6), resumed_from=3)
    assert parquet_batches(tmp_path) == [1, 2, 3, 4, 5]
    assert csv_batches(tmp_path) == ([4, 5] if name == "norms" else [1, 2, 3, 4, 5])
    assert (room.layout.damaged / f"{name}.csv").read_bytes() == content
    first, second = event_rows(tmp_path, "damaged_file")
    assert f"{name}.csv: expected a header that begins with" in str(first["message"])
    assert f"{name}.csv: it holds" in str(second["message"])
    assert_accounts_balance(tmp_path)


@pytest.mark.parametrize("resumed_from", [0, 2])
def test_rows_superseded_by_an_opening_without_a_manifest_are_not_overwritten(
    resumed_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the manifest is written; the next try, from another checkpoint, is the same attempt."""

    def refuse(path: Path, manifest: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    attempt(tmp_path, range(1, 7))
    with monkeypatch.context() as full:
        full.setattr("ava_pipeline.write.manifest_writer.write_manifest", refuse)
        with pytest.raises(OSError, match="No space"):
            Room(tmp_path, resumed_from=4).files.open(NO_STEPS)
    attempt(tmp_path, range(resumed_from + 1, resumed_from + 2), resumed_from=resumed_from)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == list(range(1, resumed_from + 2))
    assert sorted(map(int, map(str, superseded(tmp_path)))) == list(range(resumed_from + 1, 7))
    parquet = [pq.read_table(path).num_rows for path in RunLayout(tmp_path).superseded(2).glob("norms*.parquet")]
    assert sum(parquet) == 6 - resumed_from
    assert_accounts_balance(tmp_path)


class RefuseOnce:
    """`Path.replace` on a disk that refuses the n-th call."""

    def __init__(self, nth: int) -> None:
        self._left = nth
        self._replace = Path.replace

    def __get__(self, path: Path, kind: type[Path]) -> Callable[[Path], Path]:
        """Bind to a path, like a method."""
        return partial(self, path)

    def __call__(self, path: Path, target: Path) -> Path:
        """Rename, or refuse."""
        self._left -= 1
        if self._left == 0:
            raise OSError(28, "No space left on device", str(target))
        return self._replace(path, target)


def test_an_opening_interrupted_anywhere_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses the n-th rename, for every n: each row is still in the tables or superseded, in every format."""
    for number in range(1, 8):
        root = tmp_path / str(number)
        attempt(root, range(1, 7))
        refuse = RefuseOnce(number)
        with monkeypatch.context() as broken:
            broken.setattr(Path, "replace", refuse)
            room = Room(root, resumed_from=4)
            try:
                room.files.open(NO_STEPS)
            except OSError:
                assert set(csv_batches(root)) | set(superseded(root)) >= set(range(1, 7))
            room.files.open(NO_STEPS)
        assert room.files.write(steps([3])) == 0
        room.close()
        again = Room(root, resumed_from=2)
        again.write([3])
        again.close()
        assert csv_batches(root) == parquet_batches(root) == [1, 2, 3]
        assert set(superseded(root)) == {3, 4, 5, 6}
        assert_accounts_balance(root)
