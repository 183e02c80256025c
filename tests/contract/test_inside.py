"""Links in a run directory, and folders or pipes in place of files: nothing outside of it is read or written."""

import os
import shutil
from pathlib import Path

import pytest

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.many_runs.summary import settings_of
from ava_pipeline.read.predictions import is_generated
from ava_pipeline.read.run import open_run
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.recover import recover_run
from tests.validate.building import RunBuilder
from tests.validate.damaging import edit_manifest
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
    """A run from elsewhere cannot make its reader show another file."""
    (tmp_path / "outside").mkdir()
    root = RunBuilder(root=tmp_path / "run").write()
    lead_out(root / name, tmp_path / "outside")
    with pytest.raises(DamagedFileError, match=Path(name).name):
        open_run(root)


def test_a_pipe_in_place_of_a_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    """Reading from it would wait for ever."""
    root = RunBuilder(root=tmp_path / "run").write()
    path = RunLayout(root).manifest
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFileError, match=r"manifest\.json is neither a file nor a folder"):
        open_run(root)


FOLDERS_FOR_FILES = (
    "telemetry/steps.csv",
    "telemetry/steps.parquet",
    "telemetry/steps.journal",
    "telemetry/manifest.json",
    "telemetry/events.csv",
    "telemetry/writer.lock",
    "metrics.csv",
    "predictions/val_epoch_000.parquet",
)
READERS = (open_run, validate_run, lambda root: recover_run(root, dry_run=True), recover_run)


def refused_by_readers(root: Path, match: str) -> None:
    """Each reader raises, in one sentence that names the file."""
    for read in READERS:
        with pytest.raises(DamagedFileError, match=match):
            read(root)


@pytest.mark.parametrize("name", FOLDERS_FOR_FILES)
def test_a_folder_in_place_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    """It holds no data of the run, and it is left where it is."""
    root = RunBuilder(root=tmp_path / "run").write()
    (root / name).unlink(missing_ok=True)
    (root / name).mkdir()
    refused_by_readers(root, rf"{Path(name).name} is a folder, expected a file")


@pytest.mark.parametrize("name", ["telemetry", "predictions", "telemetry/damaged", "telemetry/superseded"])
def test_a_file_in_place_of_a_folder_is_named(name: str, tmp_path: Path) -> None:
    """A run whose telemetry is a file still has its metrics, and is damaged."""
    root = RunBuilder(root=tmp_path / "run").write()
    shutil.rmtree(root / name, ignore_errors=True)
    (root / name).write_bytes(b"x")
    refused_by_readers(root, rf"{Path(name).name} is a file, expected a folder")


@pytest.mark.parametrize("name", ["telemetry/steps.csv", "telemetry/manifest.json", "telemetry/damaged"])
def test_a_link_to_itself_is_named(name: str, tmp_path: Path) -> None:
    """Following it would never end."""
    root = RunBuilder(root=tmp_path / "run").write()
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(Path(name).name)
    refused_by_readers(root, rf"{Path(name).name} is a link that leads in a circle")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    """Found by fuzzing: there was no file to read, and the name was taken for a file to write."""
    root = RunBuilder(root=tmp_path / "run").write()
    (root / "telemetry/steps.csv").unlink()
    (root / "telemetry/steps.csv").symlink_to("nowhere.csv")
    refused_by_readers(root, r"steps\.csv is a link that leads to nothing")


def test_a_config_that_is_a_link_out_of_the_run_is_not_read(tmp_path: Path) -> None:
    """No line of it appears in a message, whichever reader would open it."""
    root = RunBuilder(root=tmp_path / "run").write()
    edit_manifest(root, lambda manifest: manifest.update(run_info={"job": "ava-pipeline train"}))
    (tmp_path / "secret").write_text("password: [hidden\n")
    (root / "config.yaml").unlink(missing_ok=True)
    (root / "config.yaml").symlink_to(tmp_path / "secret")
    for read in (settings_of, lambda run: is_generated(run.layout.root)):
        with pytest.raises(DamagedFileError, match=r"config\.yaml is a link out of the run"):
            read(open_run(root))
    messages = [one.message for one in validate_run(root) if one.id == "config.invalid"]
    assert len(messages) == 1
    assert "link out of the run" in messages[0]
    assert not any("hidden" in one.message for one in validate_run(root))


def test_a_checkpoint_that_is_a_link_out_of_the_run_is_not_read(tmp_path: Path) -> None:
    """Not even to check whether it is whole."""
    root = RunBuilder(root=tmp_path / "run").write()
    edit_manifest(root, lambda manifest: manifest.update(run_info={"job": "ava-pipeline train"}))
    (root / "config.yaml").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "last.pt").write_bytes(b"no checkpoint")
    (root / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert [one.message for one in validate_run(root) if "link out of" in one.message and "last.pt" in str(one.file)]


def test_a_foreign_loop_may_keep_its_links(tmp_path: Path) -> None:
    """Names that telemetry neither reads nor writes are the user's."""
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "checkpoints", "data"):
        (tmp_path / "run" / name).symlink_to(tmp_path)
    room = Room(tmp_path / "run")
    room.write([1])
    room.close()
    open_run(tmp_path / "run")
    assert csv_batches(tmp_path / "run") == [1]


def test_a_run_directory_may_be_a_link(tmp_path: Path) -> None:
    """As an outputs folder on another disk may be; a link that stays inside is treated as a file."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    room = Room(tmp_path / "run")
    room.write([1, 2])
    room.close()
    (tmp_path / "disk" / "telemetry" / "latest.csv").symlink_to("norms.csv")
    open_run(tmp_path / "run")
    assert csv_batches(tmp_path / "run") == [1, 2]


def test_a_link_in_place_of_a_partial_file_is_not_followed(tmp_path: Path) -> None:
    """The name of a file being written is known beforehand, and may be a link."""
    (tmp_path / "secret").write_bytes(SECRET)
    path = tmp_path / "file.bin"
    (tmp_path / "file.bin.partial").symlink_to(tmp_path / "secret")
    with written_aside(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert not path.is_symlink()
    assert (tmp_path / "secret").read_bytes() == SECRET
