"""`ava-pipeline runs`: one line for each run, selected and sorted."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from datetime import timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from ava_pipeline import cli
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, StepCounters, utc_now
from ava_pipeline.diagnose.diagnose import diagnose_run
from ava_pipeline.errors import MisuseError
from ava_pipeline.many_runs.command import show_runs
from ava_pipeline.many_runs.selection import parse_where
from ava_pipeline.many_runs.summary import summary_of
from ava_pipeline.read.run import open_run
from tests.evaluation.evaluating import predictions_file
from tests.validate.building import NOW, Row, RunBuilder
from tests.validate.damaging import cut, edit_manifest

DEMO = (Path(__file__).parents[2] / "configs" / "demo.yaml").read_text()
HOSTILE = "[red]x\x1b[2J\u202e\nnext"


def run_directory(root: Path, *, lr: str = "1e-3", hidden: int = 64, **settings: Any) -> Path:
    """A run of training, with its config."""
    RunBuilder(root=root, **settings).write()
    text = DEMO
    for old, new in (
        ("outputs/ava/demo", json.dumps(str(root))),
        ("base_lr: 3e-4", f"base_lr: {lr}\n  min_lr: 0"),
        ("hidden_sizes: [64]", f"hidden_sizes: [{hidden}]"),
    ):
        assert old in text
        text = text.replace(f"{old}\n", f"{new}\n")
    (root / "config.yaml").write_text(text)
    return root


def set_metrics(root: Path, srcc: list[float]) -> None:
    """Write one line for each epoch; the other metrics get worse from epoch to epoch."""
    lines = [f"{epoch},0.{epoch + 1},0.{epoch + 1},0.2,{value},0.5,0.6,0.5,0.7" for epoch, value in enumerate(srcc)]
    header = "epoch,train_loss,emd_r1,emd_r2,srcc,plcc,accuracy,mae,rmse"
    (root / "metrics.csv").write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs that differ in two settings."""
    parent = tmp_path_factory.mktemp("three")
    for name, lr, hidden, srcc in (
        ("low", "1e-4", 64, [0.1, 0.5, 0.4]),
        ("mid", "1e-3", 64, [0.2, 0.6]),
        ("top", "1e-2", 128, [float("nan"), 0.3]),
    ):
        set_metrics(run_directory(parent / name, lr=lr, hidden=hidden), srcc)
    return parent


@pytest.fixture
def folder(three_runs: Path, tmp_path: Path) -> Path:
    """A copy of the three runs that a test may change."""
    return Path(shutil.copytree(three_runs, tmp_path / "runs"))


def run_command(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli.app, ["runs", *arguments])


def runs_json(*arguments: str) -> list[dict[str, Any]]:
    """The runs as JSON."""
    runs: list[dict[str, Any]] = json.loads(run_command(*arguments, "--json").stdout)["runs"]
    return runs


def names(*arguments: str) -> list[str]:
    """The names of the listed runs, in order."""
    return [run["name"] for run in runs_json(*arguments, "--quick")]


def test_one_line_for_each_run(folder: Path) -> None:
    """With status, last batch, the best of each metric, and the settings that differ."""
    found = run_command(f"{folder}/*")
    assert found.exit_code == 0
    head, titles, *lines = found.stdout.splitlines()
    assert head == "3 runs, the best of each metric (generated, not AVA)"
    assert titles.split()[:6] == ["run", "status", "age", "batch", "SRCC", "emd_r1"]
    assert [line.split()[0] for line in lines] == ["low", "mid", "top"]
    assert "finished" in lines[0]
    assert "  120  0.5000  0.1000  " in lines[0]
    assert lines[2].endswith("hidden_sizes=[128] base_lr=0.01")
    assert "seed" not in found.stdout
    assert "output_dir" not in found.stdout
    (folder / "top/config.yaml").write_text(DEMO.replace("sample: {num", "# {num"))
    head = run_command(f"{folder}/*", "--quick").stdout.splitlines()[0]
    assert head == "3 runs, the best of each metric (2 of them generated, not AVA)"
    assert [run["is_generated"] for run in runs_json(f"{folder}/*", "--quick")] == [True, True, False]


def test_json_contains_everything(folder: Path) -> None:
    """The best of each metric with its epoch, nan skipped; all settings, and the names of those that differ."""
    whole = json.loads(run_command(f"{folder}/*", "--json").stdout)
    assert whole["differing_settings"] == ["model.hidden_sizes", "optim.base_lr"]
    low, _, top = whole["runs"]
    assert low["best"]["srcc"] == {"value": 0.5, "epoch": 1}
    assert low["best"]["emd_r1"] == {"value": 0.1, "epoch": 0}
    assert top["best"]["srcc"] == {"value": 0.3, "epoch": 1}
    assert top["settings"] == top["settings"] | {"seed": 0, "optim.base_lr": 0.01, "model.hidden_sizes": "[128]"}
    assert "output_dir" not in top["settings"]
    assert (low["last_batch"], low["last_epoch"], low["status"], low["problem"]) == (120, 2, "finished", None)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("srcc", ["mid", "low", "top"]),
        ("-srcc", ["top", "low", "mid"]),
        ("lr", ["low", "mid", "top"]),
        ("-lr", ["top", "mid", "low"]),
        ("emd_r1", ["low", "mid", "top"]),
        ("-run", ["top", "mid", "low"]),
    ],
)
def test_the_best_come_first(sort: str, order: list[str], folder: Path) -> None:
    """By a metric, best first; by another value, least first; a minus reverses; equal runs keep their order."""
    assert names(f"{folder}/*", "--sort", sort) == order


def test_runs_without_the_value_come_last(folder: Path) -> None:
    """In both directions."""
    (folder / "mid/metrics.csv").unlink()
    for path in (folder / "mid/predictions").iterdir():
        path.unlink()
    for sort in ("srcc", "-srcc"):
        assert names(f"{folder}/*", "--sort", sort)[-1] == "mid"


@pytest.mark.parametrize(
    ("condition", "chosen"),
    [
        ("lr>1e-3", ["top"]),
        ("lr >= 1e-3", ["mid", "top"]),
        ("optim.base_lr<1e-2 and srcc>0.5", ["mid"]),
        ("srcc>0.2, lr<0.01,hidden_sizes='[64]'", ["low", "mid"]),
        ("hidden_sizes!='[64]'", ["top"]),
        ("weights=none and status==finished", ["low", "mid", "top"]),
        ("run=low", ["low"]),
        ("seed!=0", []),
        ("seed=false", []),
        ("batch>100 and findings>=0 and epoch=2", ["low", "mid", "top"]),
    ],
)
def test_conditions_select_runs(condition: str, chosen: list[str], folder: Path) -> None:
    """By settings, metrics and other values; the last part of a setting's name is enough."""
    arguments = [f"{folder}/*", "--where", condition]
    assert (
        names(*arguments) if "findings" not in condition else [run["name"] for run in runs_json(*arguments)]
    ) == chosen


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("", "cannot be read from 'its end' on"),
        ("lr", "cannot be read from 'lr' on"),
        ("lr>1e-3 or seed=0", '"or" is not supported'),
        ("lr>1e-3 and", "cannot be read from 'its end' on"),
        ("lr>fast", "> expects a number, got fast"),
        ("__import__('os').system('touch x')", "cannot be read from"),
        ("lr>3; import os", "> expects a number, got 3;"),
        ("a=b c=d", "cannot be read from 'c=d' on"),
    ],
)
def test_an_invalid_condition_is_refused(condition: str, sentence: str) -> None:
    """The message names the part that cannot be read; nothing is evaluated as code."""
    with pytest.raises(MisuseError) as error:
        parse_where(condition)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--where", "batchsize>3"], "No run has a value 'batchsize'. Known names: batch"),
        (["--sort", "scrr"], "No run has a value 'scrr'. Known names: srcc"),
        (["--where", "b=1"], "may mean one.b, two.b"),
    ],
)
def test_an_unknown_name_suggests_similar_names(arguments: list[str], sentence: str, folder: Path) -> None:
    """With status 2, as for all wrong usage."""
    (folder / "low/config.yaml").write_text("one: {b: 1}\ntwo: {b: 2}\n")
    found = run_command(f"{folder}/*", "--quick", *arguments)
    assert found.exit_code == 2
    assert sentence in " ".join(found.stderr.replace("│", " ").split())


def test_a_pattern_without_runs_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With status 2."""
    monkeypatch.setattr(sys, "argv", ["ava-pipeline", "runs", f"{tmp_path}/*"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def test_status_and_ages(tmp_path: Path) -> None:
    """Of runs that are running, silent for too long, failed, interrupted, and without telemetry."""
    now = utc_now()
    for name, status, silent_s in (
        ("alive", "running", 10),
        ("dead", "running", 600),
        ("broke", "failed", 0),
        ("left", "interrupted", 0),
    ):
        heartbeat = now - timedelta(seconds=silent_s)
        RunBuilder(root=tmp_path / name, status=status, heartbeat_utc=heartbeat).write()  # type: ignore[arg-type]  # from a tuple
    RunBuilder(root=tmp_path / "bare").write()
    (tmp_path / "bare/telemetry/manifest.json").unlink()
    for path in (tmp_path / "bare/telemetry").iterdir():
        path.unlink()
    found = {run["name"]: run for run in runs_json(f"{tmp_path}/*")}
    assert {name: run["status"] for name, run in found.items()} == {
        "alive": "running",
        "bare": "unknown",
        "broke": "failed",
        "dead": "killed",
        "left": "interrupted",
    }
    assert found["alive"]["last_batch"] == 120
    assert found["dead"]["silent_s"] == pytest.approx(600, abs=60)
    assert found["alive"]["age_s"] == pytest.approx((now - NOW).total_seconds(), abs=60)
    assert not any(run["problem"] for run in found.values())


def write_and_be_killed(builder: RunBuilder) -> None:
    """Write the run, and end like a process that the system kills for its memory."""
    builder.write()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_was_just_killed_is_listed_with_its_rows(tmp_path: Path) -> None:
    """With a real process and SIGKILL; listing it changes no file."""
    builder = RunBuilder(root=tmp_path / "run", status="running", heartbeat_utc=utc_now())
    process = multiprocessing.get_context("fork").Process(target=write_and_be_killed, args=[builder])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (found,) = runs_json(f"{tmp_path}/*")
    assert (found["last_batch"], found["status"], found["problem"]) == (120, "running", None)
    layout = RunLayout(tmp_path / "run")
    assert summary_of("run", layout, now=utc_now() + timedelta(minutes=3)).status == "killed"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_best_of_known_metrics_is_listed_whatever_else_a_loop_logs(tmp_path: Path) -> None:
    """Which value of another metric is best is not known; metrics that are not logged are those of the predictions."""
    root = RunBuilder(root=tmp_path / "run").write()
    expected = runs_json(str(root))[0]["best"]
    (root / "metrics.csv").write_text("epoch,batch_idx,srcc,val_loss,top-5\n0,20,0.25,,9\n0,,,0.5,\n1,,nan,0.75,8\n")
    found = runs_json(str(root))[0]
    assert found["problem"] is None
    assert found["best"]["srcc"] == {"value": 0.25, "epoch": 0}
    assert found["best"]["val_loss"] == {"value": 0.5, "epoch": 0}
    assert found["best"]["emd_r1"] == pytest.approx(expected["emd_r1"])
    assert "top-5" not in found["best"]
    assert names(str(root), "--sort", "val_loss") == ["run"]


def test_without_metrics_the_predictions_are_evaluated(tmp_path: Path) -> None:
    """A user's own loop writes no metrics.csv."""
    root = RunBuilder(root=tmp_path / "run").write()
    (root / "metrics.csv").unlink()
    for epoch, noise in enumerate((0.6, 0.1, 0.3)):
        predictions_file(root / f"predictions/val_epoch_00{epoch}.parquet", range(1, 41), noise=noise)
    (found,) = runs_json(str(root))
    assert {name: best["epoch"] for name, best in found["best"].items() if name != "accuracy"} == dict.fromkeys(
        ("emd_r1", "emd_r2", "srcc", "plcc", "mae", "rmse"), 1
    )


def test_a_metric_that_was_not_computed_is_skipped(folder: Path) -> None:
    """An empty field of metrics.csv is not a problem, and the other epochs count."""
    lines = (folder / "mid/metrics.csv").read_text().splitlines()
    (folder / "mid/metrics.csv").write_text("\n".join([*lines[:2], "1,0.2,0.2,0.2,,0.5,0.6,0.5,0.7"]) + "\n")
    (found,) = runs_json(f"{folder}/mid", "--quick")
    assert (found["best"]["srcc"], found["problem"]) == ({"value": 0.2, "epoch": 0}, None)


def test_the_first_finding_is_listed_with_its_batch(tmp_path: Path) -> None:
    """The earliest warning or error of `diagnose`, and their number."""
    broken: dict[int, Row] = {batch: {"mlp_layer_3": float("nan"), "mlp_head": float("nan")} for batch in (50, 60)}
    root = RunBuilder(root=tmp_path / "run", norms=broken).write()
    findings = [finding for finding in diagnose_run(root).findings if finding.severity != "info"]
    first = min(findings, key=lambda finding: finding.batch_idx)
    (found,) = runs_json(str(root))
    assert found["finding"]["id"] == first.sign
    assert found["finding"]["batch_idx"] == first.batch_idx == 50
    assert found["num_findings"] == len(findings)
    assert f"{first.sign} {first.column} at batch 50" in run_command(str(root)).stdout
    assert runs_json(str(root), "--quick")[0]["finding"] is None


def test_a_finding_before_the_first_row_is_listed_without_a_batch(tmp_path: Path) -> None:
    """Every collected step was dropped, so no row says at which batch."""
    counters = StepCounters(collected=5, dropped=5)
    attempt = Attempt(number=1, started_utc=NOW, collect_every_n=1, counters=counters, rows={"steps.csv": 0})
    root = RunBuilder(root=tmp_path / "run", batches=(), attempts=[attempt]).write()
    line = run_command(str(root)).stdout.splitlines()[-1]
    assert "telemetry-gap" in line
    assert "telemetry-gap at" not in line


def test_a_damaged_run_is_listed_with_the_others(folder: Path) -> None:
    """With status 1 and everything that can be read; it meets every condition, since its values are unknown."""
    cut(folder / "mid/telemetry/manifest.json", 20)
    (folder / "low/telemetry/gradient_norms.csv").write_text("no,such,columns\n" * 20)
    (folder / "low/telemetry/gradient_norms.parquet").unlink()
    found = run_command(f"{folder}/*", "--where", "lr>1")
    assert found.exit_code == 1
    lines = found.stdout.splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [["low", "finished"], ["mid", "unreadable"]]
    assert "telemetry/gradient_norms.csv: expected columns" in lines[0]
    assert "telemetry/manifest.json is not a manifest" in lines[1]
    assert "0.6000" in lines[1]
    assert [run["name"] for run in runs_json(f"{folder}/*", "--sort", "batch")] == ["top", "low", "mid"]


def test_a_link_out_of_a_run_is_reported_and_not_followed(folder: Path) -> None:
    """Nothing else in such a run is read."""
    (folder / "mid/telemetry/more.csv").symlink_to("/etc/hostname")
    found = runs_json(f"{folder}/mid")[0]
    assert found["status"] == "unreadable"
    assert "link out of the run directory" in found["problem"]
    assert found["best"] == {}


def set_run_info(manifest: dict[str, Any], info: dict[str, str]) -> None:
    """Set run_info as a user's loop does."""
    manifest["run_info"] = info


def test_names_and_settings_are_text_on_the_terminal(tmp_path: Path) -> None:
    """Markup and control characters in them are escaped, and a run stays on one line."""
    for name in (HOSTILE, "plain"):
        root = RunBuilder(root=tmp_path / name).write()
        edit_manifest(root, partial(set_run_info, info={HOSTILE: HOSTILE + name}))
        edit_manifest(root, lambda found: found["attempts"][-1].update(logs_metrics=True))
    (tmp_path / HOSTILE / "metrics.csv").write_text("[red]\x1b]0;x\x07\n1\n")
    found = run_command(f"{tmp_path}/*")
    assert found.exit_code == 1
    assert not {"\x1b", "\x07", "\u202e"} & set(found.stdout)
    lines = found.stdout.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith(r"[red]x\x1b[2J\u202e\nnext  finished")
    assert r"got '[red]\x1b]0;x\x07'" in lines[2]
    assert lines[3].endswith(r"[red]x\x1b[2J\u202e\nnext=[red]x\x1b[2J\u202e\nnextplain")
    assert names(f"{tmp_path}/*", "--where", "run=plain") == [HOSTILE, "plain"]


@pytest.mark.parametrize("columns", [80, 140])
def test_a_run_is_one_line_on_a_terminal(columns: int, folder: Path) -> None:
    """Texts are cut off at the right edge; numbers are not."""
    console = Console(file=StringIO(), force_terminal=True, width=columns, no_color=True)
    show_runs([summary_of(path.name, RunLayout(path)) for path in sorted(folder.iterdir())], console)
    assert isinstance(console.file, StringIO)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()
    assert len(lines) == 5
    assert {len(line) for line in lines} == {columns}
    assert all(name in line for name, line in zip(("low", "mid", "top"), lines[2:], strict=True))
    assert "0.5000  0.1000" in lines[2]
    assert ("PLCC" in lines[1]) == (columns == 140)


def test_an_internal_error_in_one_run_does_not_hide_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception in the diagnosis of a run is reported as its problem."""

    def failing_for_mid(run: Any) -> Any:
        if run.layout.root.name == "mid":
            raise ZeroDivisionError
        return diagnose_run(run)

    monkeypatch.setattr("ava_pipeline.many_runs.summary.diagnose_run", failing_for_mid)
    found = runs_json(f"{folder}/*")
    assert [run["problem"] for run in found] == [None, "ZeroDivisionError", None]
    assert found[1]["best"]["srcc"]["value"] == 0.6


def test_the_last_batch_of_a_run_without_gradient_norms(tmp_path: Path) -> None:
    """Is that of another table; without any table it is unknown."""
    root = RunBuilder(root=tmp_path / "run").write()
    edit_manifest(root, lambda manifest: manifest["tables"].pop("gradient_norms"))
    layout = open_run(root).layout
    assert summary_of("run", layout, findings=False).last_batch == 120
    edit_manifest(root, lambda manifest: manifest["tables"].clear())
    assert summary_of("run", layout, findings=False).last_batch is None
