"""Files that appear complete or not at all."""

from pathlib import Path

import pytest

from ava_pipeline.contract.files import written_aside
from tests.disk_calls import recorded


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    """Until then the name does not exist; its folder is made."""
    path = tmp_path / "new" / "file.bin"
    with written_aside(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another order, a power loss may leave an empty file under the name, or neither file."""
    calls = recorded(monkeypatch)
    with written_aside(tmp_path / "file.bin") as file:
        file.write(b"whole")
    assert calls == [("sync", "file.bin.partial"), ("rename", "file.bin"), ("sync", tmp_path.name)]


def test_an_exception_leaves_the_older_file(tmp_path: Path) -> None:
    """The older file is unchanged, and nothing is left beside it."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        _write_half(path)
    assert path.read_bytes() == b"older"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def _write_half(path: Path) -> None:
    with written_aside(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    """Callers handle it like any other failure of the disk."""
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="taken"), written_aside(tmp_path / "taken" / "file.bin"):
        pass
