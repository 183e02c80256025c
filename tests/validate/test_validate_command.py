"""The output and the exit status of `ava-pipeline validate`."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ava_pipeline.cli import app
from ava_pipeline.validate.validate import RULES
from tests.validate.building import RunBuilder
from tests.validate.damaging import set_field


def validate(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["validate", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A clean run."""
    return RunBuilder(root=tmp_path / "run").write()


@pytest.fixture
def broken_run(run: Path) -> Path:
    """A run with one wrong field."""
    set_field(run / "telemetry/steps.csv", 3, "loss", "0.5")
    return run


def test_a_clean_run_says_so(run: Path) -> None:
    """The exit status is 0, and the output is one line."""
    result = validate(run)
    assert (result.exit_code, result.stdout) == (0, f"{run}: clean.\n")


def test_each_finding_is_a_line(broken_run: Path) -> None:
    """`file:line column: severity: message [rule]`, then a summary, with exit status 1."""
    result = validate(broken_run)
    finding, summary = result.stdout.splitlines()
    assert finding == (
        "telemetry/steps.csv:4 loss: error: expected equal values, got 0.5 here and 0.01 in row 3 of steps.parquet. "
        "[files.csv-parquet]"
    )
    assert summary == f"{broken_run}: not clean (1 error)."
    assert result.exit_code == 1


def test_json_is_for_programs(broken_run: Path) -> None:
    """Results are listed by path; each field of a finding has its own key."""
    result = validate(broken_run, "--json")
    validation = json.loads(result.stdout)[str(broken_run)]
    assert (validation["clean"], result.exit_code) == (False, 1)
    (finding,) = validation["findings"]
    assert finding.pop("message")
    assert {name: value for name, value in finding.items() if value} == {
        "id": "files.csv-parquet",
        "severity": "error",
        "file": "telemetry/steps.csv",
        "row": 3,
        "line": 4,
        "column": "loss",
        "value": "0.5",
    }


def test_many_runs_and_files_in_one_call(broken_run: Path, tmp_path: Path) -> None:
    """Each result stands under its path; a single one that is not clean fails the call."""
    clean = RunBuilder(root=tmp_path / "clean").write()
    file = clean / "telemetry/steps.csv"
    result = validate(clean, broken_run, file, "--json")
    results = json.loads(result.stdout)
    assert {path: entry["clean"] for path, entry in results.items()} == {
        str(clean): True,
        str(broken_run): False,
        str(file): True,
    }
    assert result.exit_code == 1
    assert validate(clean, file).stdout.splitlines() == [f"{clean}: clean.", f"{file}: clean."]


def test_a_path_without_a_run_does_not_stop_the_others(broken_run: Path, tmp_path: Path) -> None:
    """`outputs/ava/*` may match a note or an empty folder: it is reported, and the worst status counts."""
    (tmp_path / "empty").mkdir()
    clean = RunBuilder(root=tmp_path / "clean").write()
    result = validate(clean, tmp_path / "empty", broken_run, "--json")
    results = json.loads(result.stdout)
    assert [entry["clean"] for entry in results.values()] == [True, None, False]
    assert "telemetry/manifest.json" in results[str(tmp_path / "empty")]["problem"]
    assert result.exit_code == 2
    result = validate(tmp_path / "empty", clean)
    assert (result.exit_code, result.stdout) == (2, f"{clean}: clean.\n")


def test_what_a_file_holds_moves_no_cursor(run: Path) -> None:
    """A finding stays one line, and control characters in it do not reach the terminal."""
    set_field(run / "telemetry/steps.csv", 3, "loss", "\x1b[31mred")
    result = validate(run)
    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred" in result.stdout


def test_a_table_is_named_for_a_single_file_only(run: Path) -> None:
    """For a run directory `--table` is refused, not ignored."""
    result = validate(run, "--table", "steps")
    assert result.exit_code == 2
    assert "leave --table out" in result.stderr


def test_a_file_of_no_table_asks_for_its_name(tmp_path: Path) -> None:
    """Wrong usage; the message names the option and the known tables."""
    path = tmp_path / "x.csv"
    path.write_text("batch_idx,epoch,a\n1,0,2.5\n")
    result = validate(path)
    assert result.exit_code == 2
    assert "--table" in result.stderr
    assert validate(path, "--table", "gradient_norms").exit_code == 0
    assert "gradient_norms" in validate(path, "--table", "norms").stderr


def test_ignored_rules_may_be_broken(broken_run: Path) -> None:
    """`--ignore` may be repeated."""
    assert validate(broken_run, "--ignore", "files.csv-parquet", "--ignore", "rows").exit_code == 0


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)], ids=str)
def test_warnings_count_under_strict_alone(options: Sequence[str], status: int, run: Path) -> None:
    """A leftover file is a warning, which fails the call only with `--strict`."""
    (run / "telemetry/old.csv.partial").touch()
    result = validate(run, *options)
    assert (result.exit_code, "files.leftover" in result.stdout) == (status, True)


def test_an_unknown_rule_is_wrong_usage(run: Path) -> None:
    """The message suggests the most similar id."""
    result = validate(run, "--ignore", "norms.headsum")
    assert result.exit_code == 2
    assert "norms.head-sum" in result.stderr


@pytest.mark.parametrize("name", ["foo", "normal", "all"])
def test_a_rule_like_no_other_gets_no_guess(name: str, run: Path) -> None:
    """A suggestion that is far off would mislead."""
    result = validate(run, "--ignore", name)
    assert result.exit_code == 2
    assert "did you mean" not in result.stderr
    assert "--rules" in result.stderr


def test_the_rules_are_listed_without_a_run() -> None:
    """Every id, with the sentence that a valid run fulfils."""
    lines = validate("--rules").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [rule.id for rule in RULES]
    assert all(rule.sentence in line for rule, line in zip(RULES, lines, strict=True))


def test_a_missing_run_is_wrong_usage_in_one_sentence(tmp_path: Path) -> None:
    """The exit status is 2; the message names the path and what a run holds, without a traceback."""
    command = [sys.executable, "-m", "ava_pipeline", "validate", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "telemetry/manifest.json" in done.stderr
    assert "Traceback" not in done.stderr
