"""A damaged, newer or missing manifest costs no row; readers get an error with the file and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ava_pipeline import open_run
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.recover import recover_run
from tests.write.feeding import Room, csv_batches, csv_rows, event_rows, leave_as_killed, parquet_batches

pytestmark = pytest.mark.timeout(60)


def changed(**values: object) -> Callable[[bytes], bytes]:
    """A manifest with some values replaced."""
    return lambda data: json.dumps(json.loads(data) | values).encode()


DAMAGES = {
    "torn": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "no JSON": lambda _: b"\xff\x00 nothing",
    "a list": lambda _: b"[]",
    "wrong types": changed(tables=7),
    "newer": changed(schema_version=2),
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run that was killed after batch 3."""
    room = Room(tmp_path / "run")
    room.write([1, 2, 3])
    leave_as_killed(room)
    return room.layout


@damages
@pytest.mark.parametrize("resumed_from", [0, 2, 3])
def test_writing_begins_a_new_manifest_and_loses_no_row(
    damage: Callable[[bytes], bytes], resumed_from: int, layout: RunLayout
) -> None:
    """The damaged manifest is kept, an event reports it, and the new one counts the older rows."""
    data = damage(layout.manifest.read_bytes())
    layout.manifest.write_bytes(data)
    room = Room(layout.root, resumed_from=resumed_from)
    room.write([resumed_from + 1])
    room.close()
    left = list(range(1, resumed_from + 2))
    assert csv_batches(layout.root) == parquet_batches(layout.root) == left
    aside = layout.superseded(2) / "norms.csv"
    assert (
        [row["batch_idx"] for row in csv_rows(aside)] == list(range(resumed_from + 1, 4))
        if resumed_from < 3
        else (not aside.exists())
    )
    assert (layout.damaged / "manifest.json").read_bytes() == data
    (event,) = event_rows(layout.root, "damaged_file")
    assert "manifest.json is not a manifest of schema version 1" in str(event["message"])
    assert [str(one) for one in validate_run(layout.root)] == []


def test_a_missing_manifest_costs_no_row_either(layout: RunLayout) -> None:
    """Also after an interrupted opening that had already moved a damaged manifest away."""
    layout.manifest.unlink()
    room = Room(layout.root, resumed_from=2)
    room.write([3])
    room.close()
    assert csv_batches(layout.root) == parquet_batches(layout.root) == [1, 2, 3]
    first, second = read_manifest(layout.manifest).attempts
    assert (first.status, first.rows["norms.csv"], second.set_aside["norms.csv"]) == ("killed", 3, 1)
    assert validate_run(layout.root) == []


@damages
def test_readers_get_the_file_and_the_remedy(damage: Callable[[bytes], bytes], layout: RunLayout) -> None:
    """`open_run`, `validate` and `recover`, which saves the rows anyway."""
    layout.manifest.write_bytes(damage(layout.manifest.read_bytes()))
    remedy = "Upgrade ava-pipeline|Restore it from a backup"
    with pytest.raises(DamagedFileError, match=rf"manifest\.json is not a manifest.*({remedy})"):
        _ = open_run(layout.root).manifest
    assert "manifest.invalid" in {one.id for one in validate_run(layout.root)}
    (note,) = recover_run(layout.root).notes
    assert "manifest.json is not a manifest" in note
    assert parquet_batches(layout.root) == [1, 2, 3]


def test_only_a_newer_manifest_asks_for_an_upgrade(layout: RunLayout) -> None:
    """A backup would not help."""
    layout.manifest.write_bytes(changed(schema_version=2)(layout.manifest.read_bytes()))
    with pytest.raises(DamagedFileError, match=r"schema_version.*Upgrade ava-pipeline"):
        read_manifest(layout.manifest)


def test_a_manifest_without_attempts_is_named(layout: RunLayout) -> None:
    """It is valid, but has no latest attempt."""
    layout.manifest.write_bytes(changed(attempts=[])(layout.manifest.read_bytes()))
    with pytest.raises(DamagedFileError, match=r"manifest\.json lists no attempt"):
        _ = open_run(layout.root).manifest.attempt
    room = Room(layout.root, resumed_from=3)
    room.write([4])
    room.close()
    assert csv_batches(layout.root) == [1, 2, 3, 4]
    assert validate_run(layout.root) == []
