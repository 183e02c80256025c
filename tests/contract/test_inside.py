"""A run directory in which names lead elsewhere: nothing outside of it is read or written."""

import os
from pathlib import Path

import pytest

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.run import open_run
from tests.read.building import RunBuilder
from tests.write.feeding import Room, csv_batches

pytestmark = pytest.mark.timeout(60)

SECRET = b"batch_idx,epoch\n1,0\n"
LINKS = (
    "telemetry/norms.csv",
    "telemetry/norms.parquet",
    "telemetry/norms.journal",
    "telemetry/events.csv",
    "telemetry/manifest.json",
    "telemetry/writer.lock",
    "telemetry/superseded",
    "telemetry/superseded/attempt-2",
    "telemetry/damaged",
    "telemetry",
)


def lead_out(path: Path, outside: Path) -> None:
    """Put a link to a file or folder outside in place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(outside / "moved")
    target = outside / "secret"
    if path.suffix:
        target.write_bytes(SECRET)
    else:
        target.mkdir()
    path.symlink_to(target)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", LINKS)
def test_a_writer_follows_no_link_out_of_the_run(name: str, tmp_path: Path) -> None:
    """The link is named, and what it leads to is as it was."""
    outside, root = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    first = Room(root)
    first.write([1, 2])
    first.close()
    lead_out(root / name, outside)
    before = content(outside)
    with pytest.raises(DamagedFileError, match=Path(name).name):
        Room(root).write([3])
    assert content(outside) == before


@pytest.mark.parametrize("name", ["telemetry/steps.csv", "predictions/val_epoch_000.parquet", "metrics.csv"])
def test_a_reader_follows_no_link_out_of_the_run(name: str, tmp_path: Path) -> None:
    """An untrusted run cannot show a file of the reader's."""
    (tmp_path / "outside").mkdir()
    root = RunBuilder(root=tmp_path / "run").write()
    lead_out(root / name, tmp_path / "outside")
    with pytest.raises(DamagedFileError, match=Path(name).name):
        open_run(root)


def test_a_pipe_in_place_of_a_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    root = RunBuilder(root=tmp_path / "run").write()
    path = RunLayout(root).manifest
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFileError, match=r"manifest\.json is neither a file nor a folder"):
        open_run(root)


def test_a_run_directory_may_be_a_link(tmp_path: Path) -> None:
    """As with an outputs folder on another disk; links that stay inside are as good as files."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    room = Room(tmp_path / "run")
    room.write([1, 2])
    room.close()
    (tmp_path / "disk" / "telemetry" / "latest.csv").symlink_to("norms.csv")
    open_run(tmp_path / "run")
    assert csv_batches(tmp_path / "run") == [1, 2]


def test_a_link_where_a_file_is_written_aside_is_not_followed(tmp_path: Path) -> None:
    """The name of a file being written can be guessed, and a link laid there."""
    (tmp_path / "secret").write_bytes(SECRET)
    path = tmp_path / "file.bin"
    (tmp_path / "file.bin.partial").symlink_to(tmp_path / "secret")
    with written_aside(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert not path.is_symlink()
    assert (tmp_path / "secret").read_bytes() == SECRET
