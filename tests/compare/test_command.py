"""`ava-pipeline compare`: what it prints, its JSON and its exit status."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from ava_pipeline import compare_runs
from ava_pipeline.cli import app
from ava_pipeline.compare.listing import show_comparison
from tests.validate.building import RunBuilder

BATCHES = range(10, 1210, 10)
HOSTILE = "\x1b[2Jgone\u202e"


def compare(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs with a config, whose norms differ from batch 600 on."""
    root = tmp_path_factory.mktemp("two")
    norms: dict[int, dict[str, object]] = {batch: {"overall": 50.0 + batch / 1e4} for batch in range(600, 1210, 10)}
    for name, changed, rate in (("a", {}, "0.001"), ("b", norms, "0.01")):
        RunBuilder(root=root / name, batches=BATCHES, norms=changed).write()
        (root / name / "config.yaml").write_text(f"optim: {{base_lr: {rate}}}\noutput_dir: {name}\n")
    return root / "a", root / "b"


def test_the_answer_comes_first(two_runs: tuple[Path, Path]) -> None:
    """Then the settings, which run is which, and the column with its figures; the exit status is 0."""
    done = compare(*two_runs)
    assert done.exit_code == 0, done.output
    first, second, third, blank, path_a, path_b, *details = done.output.splitlines()
    assert first.startswith("The runs part at batch 600: gradient_norms.overall is around ")
    assert first.endswith(" times its scatter apart.")
    assert second.startswith(
        "Before batch 600 every shared value is equal bit for bit; there gradient_norms.overall is"
    )
    assert third == "1 setting of the training differs: optim.base_lr is 0.001 in A and 0.01 in B."
    assert (blank, path_a, path_b) == ("", f"A: {two_runs[0]}", f"B: {two_runs[1]}")
    (row,) = [line for line in details if line.startswith("gradient_norms.overall")]
    assert row.split()[1:4] == ["beyond", "noise", "600"]
    assert row.endswith("61 of 120")
    assert not any("lr_group" in line for line in details)


def test_runs_without_a_difference(two_runs: tuple[Path, Path]) -> None:
    """The first line says so."""
    done = compare(two_runs[0], two_runs[0])
    assert done.exit_code == 0
    assert done.output.startswith("No difference: every value that both runs have is equal bit for bit, in 120 batches")
    assert "Columns that differ" not in done.output


def test_json_has_everything(two_runs: tuple[Path, Path]) -> None:
    """It is JSON by the letter, and has the columns without a difference too."""

    def refused(constant: str) -> Any:
        raise AssertionError(constant)

    done = compare(*two_runs, "--json")
    assert done.exit_code == 0
    found = json.loads(done.output, parse_constant=refused)
    assert (found["verdict"], found["parting_batch"]) == ("different", 600)
    assert found["answers"][0].startswith("The runs part at batch 600")
    (setting,) = found["settings"]
    assert (setting["name"], setting["subject"], setting["a"], setting["b"]) == (
        "optim.base_lr",
        "training",
        0.001,
        0.01,
    )
    states = {
        f"{table['name']}.{column['name']}": column["state"] for table in found["tables"] for column in table["columns"]
    }
    assert states["gradient_norms.overall"] == "beyond noise"
    assert states["learning_rates.lr_group_1"] == "equal"
    assert states["steps.loss_scale"] == "not measured"
    assert (found["holdout"], found["layers"], found["weights"], found["problems"]) == (None, None, None, [])
    assert not [name for name in found if name.startswith("_")]


def test_a_damaged_part_is_status_1(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    """It is printed at the end, in text and in JSON, and the rest is compared."""
    b = RunBuilder(root=tmp_path / "b", batches=BATCHES, formats=("parquet",)).write()
    (b / "telemetry/steps.parquet").write_bytes(b"no parquet")
    done = compare(two_runs[0], b)
    assert done.exit_code == 1
    assert f"error: B: {b}/telemetry/steps.parquet" in done.output
    assert done.output.startswith("No difference beyond noise was found, but a part of the runs could not be read.")
    found = json.loads(compare(two_runs[0], b, "--json").output)
    assert [problem["severity"] for problem in found["problems"]] == ["error"]
    assert [table["name"] for table in found["tables"]] == ["learning_rates", "gradient_norms"]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_path_that_is_no_run_is_status_2(two_runs: tuple[Path, Path], tmp_path: Path, missing: int) -> None:
    """In either place."""
    paths = list(two_runs)
    paths[missing] = tmp_path / "nothing"
    done = compare(*paths)
    assert done.exit_code != 0
    assert "is not a directory" in str(done.exception)
    assert compare(two_runs[0]).exit_code == 2


@pytest.mark.parametrize("width", [None, 80])
def test_nothing_from_a_run_reaches_the_terminal_as_it_is(tmp_path: Path, width: int | None) -> None:
    """Names and values of settings are escaped, in a pipe and on a terminal."""
    paths = [RunBuilder(root=tmp_path / name).write() for name in "ab"]
    for path, value in zip(paths, ("one", "other"), strict=True):
        (path / "config.yaml").write_text(json.dumps({HOSTILE: f"{HOSTILE}[red]{value}"}))
    console = Console(file=StringIO(), width=width, force_terminal=width is not None, color_system=None)
    show_comparison(compare_runs(*paths), console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert r"\x1b[2Jgone\u202e" in printed
    assert "[red]" in printed
    assert not {"\x1b", "\u202e"} & set(printed)


def test_help_has_an_example() -> None:
    """And says what the exit status means."""
    done = compare("--help")
    assert done.exit_code == 0
    assert "ava-pipeline compare outputs/ava/demo outputs/ava/other" in done.output
    assert "Exit status" in done.output
