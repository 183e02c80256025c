"""`recover` repairs a run that was killed or damaged, and reports what was lost."""

import json
import platform
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ava_pipeline.cli import app
from ava_pipeline.contract.arrays import integers
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.errors import DamagedFileError, MisuseError, NotARunError, WriteError
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.lock import RunLock
from ava_pipeline.write.recover import RecoveredFile, recover_run
from tests.scripts import run_script
from tests.validate.building import NOW, TABLES, RunBuilder
from tests.write.feeding import LongMeasure, Room, csv_batches, event_rows, leave_as_killed, parquet_batches
from tests.write.test_lock import held_elsewhere

pytestmark = pytest.mark.timeout(60)

BATCHES = list(range(10, 121, 10))


@pytest.fixture
def killed(tmp_path: Path) -> RunLayout:
    """A run whose process was killed: its rows are in journals."""
    return RunLayout(RunBuilder(root=tmp_path / "run", status="running").write())


def recover(layout: RunLayout, *options: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["recover", str(layout.root), *options])


def content(layout: RunLayout) -> dict[str, bytes]:
    """Every file of the run except the lock, with its content."""
    files = (path for path in layout.root.rglob("*") if path.is_file() and path != layout.lock)
    return {str(path.relative_to(layout.root)): path.read_bytes() for path in files}


def on_disk(layout: RunLayout) -> dict[Path, tuple[int, bytes]]:
    """Every path in the run, including the lock, with its time of change and its content."""
    return {
        path: (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes()) for path in layout.root.rglob("*")
    }


def files_of(layout: RunLayout, table: str, *, dry_run: bool = False) -> dict[str, RecoveredFile]:
    """Recover, and return the table's files by suffix."""
    found = recover_run(layout.root, dry_run=dry_run).tables[table]
    return {one.file.partition(".")[2]: one for one in found}


def flip_in_second_batch(journal: Path) -> bytes:
    """Damage the second of a journal's batches of five rows."""
    data = bytearray(journal.read_bytes())
    second = data.index(b"AVAjrnR1", data.index(b"AVAjrnR1") + 1)
    data[second + 40] ^= 1
    journal.write_bytes(data)
    return bytes(data)


def stored_batches(layout: RunLayout, table: str = "gradient_norms") -> list[int]:
    """The batches in a table's Parquet file."""
    return [int(batch) for batch in integers(read_parquet(layout.parquet(table)), "batch_idx")]


def test_a_killed_run_becomes_whole_files_and_nothing_is_lost(killed: RunLayout) -> None:
    """Every journal is turned into Parquet, the manifest says how the run ended, and the run is valid."""
    result = recover(killed)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, f"{killed.root}: nothing is lost.")
    assert "gradient_norms.journal: 12 rows" in result.stdout
    for table in TABLES:
        assert stored_batches(killed, table.table.name) == BATCHES
        assert not killed.journal(table.table.name).exists()
    assert read_manifest(killed.manifest).attempt.status == "killed"
    assert not killed.damaged.exists()
    RunBuilder(root=killed.root).write_predictions()
    assert validate_run(killed.root, now=NOW) == []


def test_a_second_recovery_changes_nothing(killed: RunLayout) -> None:
    """The second recovery has nothing to do."""
    recover(killed)
    before = content(killed)
    assert recover(killed).exit_code == 0
    assert content(killed) == before


def test_a_dry_run_reports_the_same_and_changes_nothing(killed: RunLayout) -> None:
    """A recovery does what the dry run reports."""
    flip_in_second_batch(killed.journal("steps"))
    with killed.csv("steps").open("ab") as file:
        file.write(b"130,2,2026-")
    before = on_disk(killed)
    planned = json.loads(recover(killed, "--dry-run", "--json").stdout)
    assert on_disk(killed) == before
    done = json.loads(recover(killed, "--json").stdout)
    assert (planned.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert planned == done
    kept = {str(path.relative_to(killed.telemetry)) for path in killed.damaged.iterdir()}
    assert kept == {one["kept_in"] for one in done["tables"]["steps"] if one["kept_in"]}


@pytest.mark.parametrize(
    ("tail", "num_rows", "kept"),
    [
        (b"4,0,a,4\n4,0,b,4\n4,0,", 9, b"4,0,a,4\n4,0,b,4\n4,0,"),
        (b"4,0,a,4\n4,", 9, b"4,0,a,4\n4,"),
        (b"4,0,a,4\n4,0,b,4\n4,0,c,4\n5,0,a", 12, b"5,0,a"),
        (b"4", 9, b"4"),
    ],
)
def test_a_batch_that_was_cut_off_is_taken_away_whole(tmp_path: Path, tail: bytes, num_rows: int, kept: bytes) -> None:
    """Of a long table, so that no reader takes some of a batch's layers for all of them; a next attempt continues."""
    run = Room(tmp_path, measure=LongMeasure())
    run.write([1, 2, 3])
    leave_as_killed(run)
    with run.layout.csv("norms").open("ab") as file:
        file.write(tail)
    planned = files_of(run.layout, "norms", dry_run=True)["csv"]
    found = files_of(run.layout, "norms")["csv"]
    assert found == planned
    assert found.num_rows == num_rows == len(csv_batches(tmp_path))
    assert found.kept_in is not None
    assert (run.layout.telemetry / found.kept_in).read_bytes() == kept
    assert len(event_rows(tmp_path, "damaged_file")) == 1
    assert num_rows > 9 or validate_run(tmp_path) == []
    again = Room(tmp_path, resumed_from=3, measure=LongMeasure())
    again.write([4, 5])
    again.close()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert validate_run(tmp_path) == []


def test_a_torn_line_is_cut_and_kept(killed: RunLayout) -> None:
    """The whole lines stay, the incomplete one is in damaged/, and the exit status says that something is lost."""
    whole = killed.csv("steps").read_bytes()
    with killed.csv("steps").open("ab") as file:
        file.write(b"130,2,2026-")
    result = recover(killed)
    assert result.exit_code == 1
    assert "the last line is incomplete: its 11 bytes" in result.stdout
    assert killed.csv("steps").read_bytes() == whole
    assert (killed.damaged / "steps.csv.end").read_bytes() == b"130,2,2026-"


RECOVER = """
import sys
from ava_pipeline.write.recover import recover_run

recovery = recover_run(sys.argv[1])
assert len(recovery.lost) == 2 and recovery.to_text()
assert not {"pandas", "torch", "scipy"} & set(sys.modules)
"""


def test_recovery_loads_neither_pandas_nor_torch(killed: RunLayout) -> None:
    """It works in Arrow, also when it writes events of what is lost."""
    flip_in_second_batch(killed.journal("gradient_norms"))
    run_script(RECOVER, killed.root)
    assert len(event_rows(killed.root, "damaged_file")) == 2


def test_losses_are_findings_with_the_place_of_their_original(killed: RunLayout) -> None:
    """Each has an id, a severity and a place, and is printed and exported like every finding."""
    killed.csv("steps").write_bytes(killed.csv("steps").read_bytes() + b"no row\n130,2")
    lines, torn = files_of(killed, "steps", dry_run=True)["csv"].lost
    assert (lines.id, lines.severity, lines.file, lines.line) == ("files.line", "error", "telemetry/steps.csv", 14)
    assert (torn.id, torn.severity) == ("files.torn-line", "info")
    assert lines.advice == "The original is kept as telemetry/damaged/steps.csv."
    exported = json.loads(recover(killed, "--dry-run", "--json").stdout)["tables"]["steps"][0]
    assert exported["lost"] == json.loads(json.dumps([lines.to_json(), torn.to_json()]))
    assert f"  {lines}\n" in recover(killed).stdout
    assert (killed.damaged / "steps.csv").exists()


def test_a_dry_run_finds_damaged_lines_of_csv_too(killed: RunLayout) -> None:
    """It also counts the rows around them."""
    whole = killed.csv("steps").read_bytes()
    killed.csv("steps").write_bytes(whole + b"\0\0\n")
    planned = files_of(killed, "steps", dry_run=True)["csv"]
    assert files_of(killed, "steps")["csv"] == planned
    assert (planned.num_rows, planned.kept_in) == (12, "damaged/steps.csv")
    assert killed.csv("steps").read_bytes() == whole
    assert (killed.damaged / "steps.csv").read_bytes() == whole + b"\0\0\n"


def test_a_damaged_journal_loses_one_batch_and_is_kept(killed: RunLayout) -> None:
    """The rows of every other batch are saved, the lost ones are counted, and an event covers their batches."""
    data = flip_in_second_batch(killed.journal("gradient_norms"))
    journal = files_of(killed, "gradient_norms")["journal"]
    assert (journal.num_bytes, journal.num_rows, journal.kept_in) == (len(data), 7, "damaged/gradient_norms.journal")
    assert "checksum" in journal.lost[0].message
    assert journal.lost[-1].message.startswith("5 rows")
    assert stored_batches(killed) == BATCHES[:5] + BATCHES[10:]
    assert (killed.damaged / "gradient_norms.journal").read_bytes() == data
    events = event_rows(killed.root, "damaged_file")
    assert {(row["batch_idx"], row["batch_idx_end"]) for row in events} == {(1, 120)}


def test_rows_whose_own_schema_is_damaged_are_saved_by_the_manifest(killed: RunLayout) -> None:
    """The declaration of a table is in the journal and in the manifest."""
    data = bytearray(killed.journal("gradient_norms").read_bytes())
    data[40] ^= 1
    killed.journal("gradient_norms").write_bytes(data)
    assert files_of(killed, "gradient_norms")["journal"].num_rows == 12
    assert stored_batches(killed) == BATCHES


def test_a_damaged_parquet_file_is_kept_and_its_journal_saved(tmp_path: Path) -> None:
    """A file that cannot be read does not prevent saving the other."""
    layout = RunLayout(tmp_path)
    first = Room(tmp_path)
    first.write([1, 2])
    first.close()
    second = Room(tmp_path, resumed_from=2)
    second.write([3])
    leave_as_killed(second)
    layout.parquet("norms").write_bytes(b"PAR1 no more")
    found = files_of(layout, "norms")
    assert (found["parquet"].num_rows, found["parquet"].kept_in) == (0, "damaged/norms.parquet")
    assert found["journal"].num_rows == 1
    assert stored_batches(layout, "norms") == [3]
    assert csv_batches(tmp_path) == [1, 2, 3]
    assert (layout.damaged / "norms.parquet").read_bytes() == b"PAR1 no more"


def test_an_older_damaged_file_is_not_overwritten(killed: RunLayout) -> None:
    """Each original gets a name of its own."""
    killed.damaged.mkdir()
    (killed.damaged / "gradient_norms.journal").write_bytes(b"older")
    flip_in_second_batch(killed.journal("gradient_norms"))
    assert files_of(killed, "gradient_norms")["journal"].kept_in == "damaged/gradient_norms.journal.1"
    assert (killed.damaged / "gradient_norms.journal").read_bytes() == b"older"


def test_files_that_are_not_tables_of_the_run_are_left_alone(killed: RunLayout) -> None:
    """They are not listed, not cut and not kept as damaged."""
    foreign = {"summary.csv": b"epoch,loss\n1,0.5", "mine.parquet": b"no Parquet"}
    for name, data in foreign.items():
        (killed.telemetry / name).write_bytes(data)
    found = recover_run(killed.root)
    assert set(found.tables) == {table.table.name for table in TABLES}
    assert found.is_complete
    assert {name: (killed.telemetry / name).read_bytes() for name in foreign} == foreign


def test_a_dry_run_leaves_the_lock_file_of_a_killed_process_alone(killed: RunLayout) -> None:
    """The last writer can still be read, and a missing lock file is not created."""
    dead = json.dumps({"pid": 7, "host": platform.node(), "start": NOW.isoformat()})
    for text in ("", dead):
        if text:
            killed.lock.write_text(text)
        before = on_disk(killed)
        assert recover(killed, "--dry-run").exit_code == 0
        assert on_disk(killed) == before


@pytest.mark.parametrize("content", [b"[" * 4096, b'{"pid":1e999}', b'{"pid":NaN}', b'{"pid":[]}', b"\xff", b"7"])
def test_a_lock_file_with_any_content_names_no_holder(content: bytes, killed: RunLayout) -> None:
    """Only a live process blocks the recovery, whatever the file contains."""
    killed.lock.write_bytes(content)
    assert recover_run(killed.root, dry_run=True).is_complete
    assert recover_run(killed.root).is_complete


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["real", "dry"])
def test_a_run_that_is_being_written_is_refused_and_the_writer_named(
    options: tuple[str, ...], killed: RunLayout
) -> None:
    """The journals of a run that is being written are not removed."""
    before = content(killed)
    with held_elsewhere(killed.lock) as holder:
        result = recover(killed, *options)
        with pytest.raises(MisuseError, match=rf"pid\W+{holder.pid}\b"):
            recover_run(killed.root, dry_run=bool(options))
        with pytest.raises(WriteError):  # asking did not let go of the holder's lock
            RunLock(killed.lock)
    assert result.exit_code == 2
    assert content(killed) == before


def test_a_directory_without_tables_is_wrong_usage(tmp_path: Path) -> None:
    """An empty or missing directory."""
    for root in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotARunError, match=r"telemetry/\*\.csv"):
            recover_run(root)
        assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_costs_no_row_and_is_reported(killed: RunLayout) -> None:
    """The tables do not depend on it."""
    killed.manifest.write_bytes(b"{")
    result = recover(killed)
    assert "manifest.json is not a manifest" in result.stdout
    assert stored_batches(killed) == BATCHES


@pytest.mark.parametrize("name", ["gradient_norms.journal", "damaged", "writer.lock", "events.csv"])
def test_nothing_outside_the_run_is_recovered_or_written(name: str, killed: RunLayout, tmp_path: Path) -> None:
    """A link out of the run is reported before any file is changed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    path = killed.telemetry / name
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    before = content(killed)
    with pytest.raises(DamagedFileError, match=name):
        recover_run(killed.root)
    assert (content(killed), list(outside.iterdir())) == (before, [])
