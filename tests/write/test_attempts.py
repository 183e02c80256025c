"""Attempts in one run directory: whatever was tried before, the tables hold the latest and nothing is deleted."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_pipeline.contract.journal import read_journal
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
    """One attempt that writes a row a batch and is closed, or left as a kill leaves it."""
    room = Room(root, resumed_from=resumed_from)
    room.write(batches)
    if is_killed:
        leave_as_killed(room)
    else:
        room.close()


def assert_accounts_balance(root: Path) -> None:
    """For each file, what attempts wrote less what was set aside is what it holds."""
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


def test_a_fresh_attempt_sets_all_older_rows_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is deleted, the tables begin anew, and one warning says how to go on instead."""
    attempt(tmp_path, range(1, 6))
    attempt(tmp_path, range(1, 3))
    layout = RunLayout(tmp_path)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2]
    assert list(superseded(tmp_path)) == [1, 2, 3, 4, 5]
    assert pq.read_table(layout.superseded(2) / "norms.parquet").num_rows == 5
    assert read_manifest(layout.manifest).attempt.set_aside == {"norms.csv": 5, "norms.parquet": 5}
    assert len([message for message in caplog.messages if "load_state_dict()" in message]) == 1
    assert_accounts_balance(tmp_path)


def test_a_resume_sets_aside_what_lies_behind_the_checkpoint(tmp_path: Path) -> None:
    """The tables go on without gap or repetition."""
    attempt(tmp_path, range(1, 11))
    attempt(tmp_path, range(7, 13), resumed_from=6)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == list(range(1, 13))
    assert list(superseded(tmp_path)) == [7, 8, 9, 10]
    assert_accounts_balance(tmp_path)


def test_a_killed_attempt_is_counted_by_its_files(tmp_path: Path) -> None:
    """Its manifest is older than its rows; the next attempt's says what it really wrote."""
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
def test_any_resumes_in_a_row(later: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is resumed where, finished or killed: the tables are the latest story, and no row is gone."""
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
    """The manifest of an attempt that has just begun balances without its rows."""
    expected: Counter[str] = Counter()
    for one in read_manifest(room.layout.manifest).attempts:
        expected.update(one.rows)
        expected.subtract(one.set_aside)
    number = room.files._tables[0].num_rows["norms.csv"]
    assert expected["norms.csv"] == len(csv_batches(room.root)) - number


def test_a_damaged_journal_is_kept_and_the_batches_it_may_have_held_are_told(tmp_path: Path) -> None:
    """What can be saved is saved, the original lies in damaged/, and an event covers every row that is missing."""
    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    for batch in range(1, 6):
        room.files.write(steps([batch]))
    leave_as_killed(room)
    journal = room.layout.journal("norms")
    content = bytearray(journal.read_bytes())
    content[-len(content) // 8 * 3] ^= 0xFF
    journal.write_bytes(content)
    assert read_journal(journal).damage
    attempt(tmp_path, range(6, 8), resumed_from=5)
    found = parquet_batches(tmp_path)
    missing = set(range(1, 8)) - set(found)
    assert missing
    assert (room.layout.telemetry / "damaged" / "norms.journal").read_bytes() == content
    told = event_rows(tmp_path, "damaged_file")
    assert "norms.journal" in str(told[0]["message"])
    for batch in missing:
        assert any(int(str(row["batch_idx"])) <= int(str(batch)) <= int(str(row["batch_idx_end"])) for row in told)
    assert_accounts_balance(tmp_path)


def test_a_torn_last_line_and_a_torn_frame_are_told_and_cut(tmp_path: Path) -> None:
    """What a kill left half written is neither glued to the next row nor passed over in silence."""
    attempt(tmp_path, range(1, 4), is_killed=True)
    layout = RunLayout(tmp_path)
    with layout.csv("norms").open("ab") as file:
        file.write(b"4,0,0.")
    with layout.journal("norms").open("ab") as file:
        file.write(b"AVAjrnR1 and no more")
    attempt(tmp_path, range(4, 6), resumed_from=3)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4, 5]
    told = event_rows(tmp_path, "damaged_file")
    assert [str(row["message"]).split(":")[0] for row in told] == ["norms.csv", "norms.journal"]
    assert {(row["batch_idx"], row["batch_idx_end"]) for row in told} == {(3, 3)}
    assert_accounts_balance(tmp_path)


@pytest.mark.parametrize("left", [b"", b"AVAjrnS1"], ids=["nothing", "half a header"])
def test_a_journal_of_a_process_killed_at_once_is_no_obstacle(left: bytes, tmp_path: Path) -> None:
    """A kill between making the journal and its first frame costs nothing."""
    layout = RunLayout(tmp_path)
    layout.telemetry.mkdir()
    layout.journal("norms").write_bytes(left)
    attempt(tmp_path, range(1, 4))
    assert not (layout.telemetry / "superseded").exists()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3]
    assert_accounts_balance(tmp_path)


def test_a_parquet_file_that_cannot_be_read_is_kept_and_does_not_end_telemetry(tmp_path: Path) -> None:
    """The new rows are written, the damaged file lies in damaged/, and its rows are told as missing."""
    attempt(tmp_path, range(1, 4))
    layout = RunLayout(tmp_path)
    content = layout.parquet("norms").read_bytes()[:-20]
    layout.parquet("norms").write_bytes(content)
    attempt(tmp_path, range(4, 6), resumed_from=3)
    assert parquet_batches(tmp_path) == [4, 5]
    assert csv_batches(tmp_path) == [1, 2, 3, 4, 5]
    assert (layout.telemetry / "damaged" / "norms.parquet").read_bytes() == content
    told = event_rows(tmp_path, "damaged_file")
    assert any((row["batch_idx"], row["batch_idx_end"]) == (1, 3) for row in told)
    assert_accounts_balance(tmp_path)


FOREIGN = {"summary.csv": b"epoch,loss\nfirst,0.5\nlast", "mine.parquet": b"no Parquet", "mine.csv": b"1,2\n3,4\n"}


def lay_beside(root: Path) -> Callable[[], bool]:
    """Files of the user's own in the telemetry folder; the answer is whether they lie there unchanged."""
    paths = {RunLayout(root).telemetry / name: content for name, content in FOREIGN.items()}
    for path, content in paths.items():
        path.write_bytes(content)
    return lambda: all(path.is_file() and path.read_bytes() == content for path, content in paths.items())


@pytest.mark.parametrize("has_manifest", [True, False], ids=["manifest", "lost manifest"])
@pytest.mark.parametrize("resumed_from", [0, 2])
def test_files_that_are_no_table_of_the_run_are_left_alone(
    resumed_from: int, *, has_manifest: bool, tmp_path: Path
) -> None:
    """What a user puts beside the tables neither ends telemetry nor is moved, cut or counted."""
    attempt(tmp_path, range(1, 6))
    layout = RunLayout(tmp_path)
    is_unchanged = lay_beside(tmp_path)
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


def test_a_table_that_only_an_earlier_attempt_measured_is_the_runs_still(tmp_path: Path) -> None:
    """Its rows behind the checkpoint are set aside, two attempts later too."""
    rates = NORMS.model_copy(update={"name": "rates"})
    first = Room(tmp_path, measure=PlainMeasure(rates))
    first.write(range(1, 6))
    first.close()
    attempt(tmp_path, range(5, 7), resumed_from=4)
    attempt(tmp_path, range(3, 4), resumed_from=2)
    assert [row["batch_idx"] for row in csv_rows(RunLayout(tmp_path).csv("rates"))] == [1, 2]


def test_rows_that_somebody_removed_are_told(tmp_path: Path) -> None:
    """A file that holds fewer rows than were written is not taken as it is in silence."""
    attempt(tmp_path, range(1, 6))
    RunLayout(tmp_path).csv("norms").write_text("batch_idx,epoch,overall,head\n1,0,1,0.5\n")
    attempt(tmp_path, range(6, 8), resumed_from=5)
    (told,) = event_rows(tmp_path, "damaged_file")
    assert "norms.csv: it holds 4 rows fewer" in str(told["message"])
    assert (told["batch_idx"], told["batch_idx_end"]) == (1, 5)
    assert_accounts_balance(tmp_path)


@pytest.mark.parametrize("resumed_from", [0, 3])
def test_a_damaged_line_of_csv_is_kept_and_does_not_end_telemetry(resumed_from: int, tmp_path: Path) -> None:
    """The rows around it stay, the file as it was lies in damaged/, and the line is told by its number."""
    attempt(tmp_path, range(1, 4))
    layout = RunLayout(tmp_path)
    lines = layout.csv("norms").read_bytes().splitlines(keepends=True)
    content = b"".join([*lines[:2], b"what is this\n", *lines[2:]])
    layout.csv("norms").write_bytes(content)
    attempt(tmp_path, range(resumed_from + 1, 6), resumed_from=resumed_from)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4, 5]
    assert (layout.damaged / "norms.csv").read_bytes() == content
    (told,) = event_rows(tmp_path, "damaged_file")
    assert "norms.csv: 1 lines do not begin with a batch; the first is b'what is this" in str(told["message"])
    assert_accounts_balance(tmp_path)


@pytest.mark.parametrize("name", ["norms", "events"])
def test_a_csv_file_that_another_program_saved_anew_does_not_end_telemetry(name: str, tmp_path: Path) -> None:
    """It is kept whole in damaged/, the file begins anew, its rows are told as missing, and Parquet lost none."""
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
def test_what_an_opening_without_a_manifest_set_aside_is_not_written_over(
    resumed_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the manifest comes; the next try, from another checkpoint, is the same attempt's."""

    def refuse(path: Path, manifest: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    attempt(tmp_path, range(1, 7))
    with monkeypatch.context() as full:
        full.setattr("ava_pipeline.write.run_writer.write_manifest", refuse)
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
        """As a method of a path."""
        return partial(self, path)

    def __call__(self, path: Path, target: Path) -> Path:
        """Rename, or refuse."""
        self._left -= 1
        if self._left == 0:
            raise OSError(28, "No space left on device", str(target))
        return self._replace(path, target)


def test_an_opening_cut_short_anywhere_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses the n-th rename, for every n: each row is still in the tables or set aside, in every format."""
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
