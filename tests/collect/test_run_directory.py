"""The path of a run directory: absolute, without `~`, and not a run's own telemetry folder."""

import os
from pathlib import Path

import pytest

from ava_pipeline import TelemetryCollector
from ava_pipeline.errors import MisuseError
from tests.collect.models import tiny, train
from tests.collect.recorded import batches


def recorded(output_dir: str | os.PathLike[str], meanwhile: Path | None = None) -> None:
    """Two batches; the process changes its directory before the first, as some trainers do."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, output_dir, collect_every_n=1) as telemetry:
        if meanwhile is not None:
            os.chdir(meanwhile)
        train(telemetry, model, optimizer, 2)


def test_a_relative_path_is_that_of_the_constructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process goes later does not matter."""
    monkeypatch.chdir(tmp_path)
    recorded("run", meanwhile=Path("/"))
    assert batches(tmp_path / "run") == [1, 2]


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no folder of that name is created."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recorded(Path("~/runs/first"))
    assert batches(tmp_path / "home" / "runs" / "first") == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_an_unknown_home_directory_is_refused(tmp_path: Path) -> None:
    """The message says what to give."""
    with pytest.raises(MisuseError, match=r"output_dir is '~nobody-of-this-name/run': .* Give a path without '~'"):
        recorded("~nobody-of-this-name/run")


@pytest.mark.parametrize("kept", ["manifest.json", "writer.lock"])
def test_the_telemetry_folder_of_a_run_is_refused(tmp_path: Path, kept: str) -> None:
    """Its files would lie among the run's own; the message names the run, also while it has no manifest yet."""
    recorded(tmp_path / "run")
    telemetry = tmp_path / "run" / "telemetry"
    for path in telemetry.iterdir():
        if path.name != kept:
            path.unlink()
    with pytest.raises(MisuseError, match=f"keeps its telemetry: give {tmp_path / 'run'}\\."):
        recorded(telemetry)
    assert not (telemetry / "telemetry").exists()


def test_a_run_directory_may_be_called_telemetry(tmp_path: Path) -> None:
    """It may be used again, too."""
    for _ in range(2):
        recorded(tmp_path / "telemetry")
    assert batches(tmp_path / "telemetry") == [1, 2]
