"""Bytes that are not UTF-8, such as in file names on an older disk, cost no row."""

import os
from pathlib import Path

import pytest

from ava_pipeline.collect.arguments import as_json
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.write import manifest_writer
from tests.scripts import run_script
from tests.write.feeding import NO_STEPS, Room, csv_batches, event_rows, leave_as_killed

pytestmark = pytest.mark.timeout(90)

CAFE = os.fsdecode(b"caf\xe9")

WRITE = """
import sys
from pathlib import Path
from tests.write.feeding import Room, step

root = Path(sys.argv[1])
room = Room(root)
room.worker.start()
room.offer(step(1))
assert room.channel.flush(20)
root.rename(root.with_name("moved"))
room.offer(step(2))
stats = room.worker.close(20, "finished")
assert stats.written == 2, stats
"""


def test_in_the_command_line_and_the_directorys_name(tmp_path: Path) -> None:
    """Every row is written, the Parquet file is finished, and the manifest and an event escape the bytes."""
    run_script(WRITE, tmp_path / CAFE, f"--data={CAFE}")
    (tmp_path / CAFE).rename(tmp_path / "run")  # what other programs call it
    assert csv_batches(tmp_path / "run") == [2]
    telemetry = tmp_path / "run" / "telemetry"
    assert read_parquet(telemetry / "norms.parquet").column("batch_idx").to_pylist() == [2]
    assert read_manifest(telemetry / "manifest.json").attempt.argv[-1] == "--data=caf\\udce9"
    (event,) = event_rows(tmp_path / "run", "damaged_file")
    assert f"{tmp_path}/caf\\udce9 was moved" in str(event["message"])


def test_a_run_in_such_a_directory_is_resumed(tmp_path: Path) -> None:
    """After rows in Parquet and rows in a journal."""
    for last, is_killed in ((0, False), (1, True), (2, False)):
        room = Room(tmp_path / CAFE, resumed_from=last)
        room.write([last + 1])
        (leave_as_killed if is_killed else Room.close)(room)
    parquet = room.layout.parquet("norms")
    assert read_parquet(parquet).column("batch_idx").to_pylist() == [1, 2, 3]


def test_in_run_info() -> None:
    """They are kept as far as JSON allows, at any depth."""
    assert as_json({"data": [CAFE], "é": 1}) == {"data": ["caf?"], "é": 1}


def test_a_manifest_that_cannot_be_made_costs_a_heartbeat_and_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any exception is logged, and rows are still written."""
    room = Room(tmp_path)
    room.write([1])
    assert room.files._manifest is not None
    room.files._manifest._due = 0.0

    def refuse(*_: object) -> None:
        raise ValueError("surrogates not allowed")

    with monkeypatch.context() as broken:
        broken.setattr(manifest_writer, "write_manifest", refuse)
        room.files.heartbeat(NO_STEPS)
    assert "manifest.json could not be written: ValueError: surrogates not allowed" in str(room.log.first_error)
    room.write([2])
    room.close()
    assert csv_batches(tmp_path) == [1, 2]
