"""The output of a run during training and at its end."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ava_pipeline.train.display import Display, show_summary
from ava_pipeline.train.job import train
from ava_pipeline.validate.validate import validate_run
from tests.train.small_runs import small_config


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every line that a small run on generated data prints."""
    console = Console(width=200, record=True, file=StringIO())
    show_summary(train(small_config(tmp_path_factory.mktemp("run")), Display(console)), console)
    return console.export_text().splitlines()


def lines_with(printed: list[str], *words: str) -> list[str]:
    """The lines that contain all of the words."""
    return [line for line in printed if all(word in line for word in words)]


def test_figures_of_generated_data_are_called_so(printed: list[str]) -> None:
    """Each line of metrics and each table says that the data are generated."""
    for words in (["epoch", "train loss", "SRCC"], ["Validation metrics"], ["Last gradient norms"]):
        found = [line for line in lines_with(printed, *words) if "emd_r1  " not in line]
        assert found
        assert all("generated, not AVA" in line for line in found), found


def test_epochs_count_from_0_as_in_the_files(printed: list[str]) -> None:
    """In both tables and in the lines above them; each line also says how many epochs of how many are done."""
    headers = [line.split() for line in printed]
    epochs, norms = (
        next(row for row, names in enumerate(headers) if names[:2] == wanted)
        for wanted in (["epoch", "train"], ["batch_idx", "epoch"])
    )
    assert [line.split()[0] for line in printed[epochs + 1 : epochs + 3]] == ["0", "1"]
    assert printed[norms + 1].split()[1] == "1"
    assert lines_with(printed, "epoch 0, 1 of 2", "train loss")
    assert lines_with(printed, "epoch 1, 2 of 2", "train loss")


def test_files_are_those_that_are_there(printed: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run shorter than collect_every_n has no telemetry: the list omits it, and a warning gives the reason."""
    assert "(metrics.csv, telemetry/, predictions/, checkpoints/last.pt)" in "".join(lines_with(printed, "Files: "))
    console = Console(width=200, record=True, file=StringIO())
    options = ("train.epochs=1", "telemetry.collect_every_n=10", "save_val_predictions=false")
    show_summary(train(small_config(tmp_path, *options), Display(console)), console)
    assert "(metrics.csv, checkpoints/last.pt)" in console.export_text()
    assert "no row was recorded, because the run had 5 batches and collect_every_n is 10" in caplog.text
    assert [found.id for found in validate_run(tmp_path / "run")] == ["telemetry.no-row"]


def test_figures_of_real_data_are_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The data are generated once, and then read like a user's own data."""
    train(small_config(tmp_path, "train.epochs=1"), Display(Console(quiet=True)))
    console = Console(width=200)
    config = small_config(tmp_path, "data.sample=null", "train.epochs=1", f"output_dir={tmp_path}/real")
    show_summary(train(config, Display(console)), console)
    output = capsys.readouterr().out
    assert "Last gradient norms" in output
    assert "generated" not in output
