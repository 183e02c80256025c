"""What the command line prints, what it imports, and with which status it ends."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ava_pipeline import __version__, cli
from ava_pipeline.contract.builtin_tables import GT_COLUMNS, PRED_COLUMNS
from ava_pipeline.metrics import mean_scores
from tests.train.small_runs import command, config_file, run
from tests.validate.building import RunBuilder


def predictions(path: Path, *, num_images: int = 50) -> Path:
    """Write a file of predictions as a run does."""
    rng = np.random.default_rng(0)
    pred, truth = rng.dirichlet(np.ones(10), (2, num_images))
    frame = pd.DataFrame({"image_id": range(num_images), "pred_mean": mean_scores(pred), "gt_mean": mean_scores(truth)})
    for columns, shares in ((PRED_COLUMNS, pred), (GT_COLUMNS, truth)):
        frame[list(columns)] = shares.astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)
    return path


def status_of(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> int:
    """Run `main` in this process."""
    monkeypatch.setattr(sys, "argv", ["ava-pipeline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_version_is_the_packages() -> None:
    """Bug reports name it."""
    assert CliRunner().invoke(cli.app, ["--version"]).stdout == f"{__version__}\n"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    """Its help has an example, no type beside a flag, which takes no value, and no hidden argument."""
    found = CliRunner().invoke(cli.app, [name, "--help"])
    assert found.exit_code == 0
    assert f"ava-pipeline {name} " in " ".join(found.stdout.split())
    assert "<bool>" not in found.stdout
    assert "[]" not in found.stdout


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_option_has_a_help_text(name: str) -> None:
    """A hidden argument is the only exception."""
    params = cli.load_command(name).params
    assert [param.name for param in params if not param.hidden and not param.help] == []


def test_the_table_lists_the_first_line_of_each_docstring() -> None:
    """The table has its own copy, so that listing the commands imports none of them."""
    first_lines = {name: cli.load_command(name).help.splitlines()[0] for name in cli.COMMANDS}
    assert first_lines == {name: entry.help for name, entry in cli.COMMANDS.items()}
    listed = " ".join(CliRunner().invoke(cli.app, ["--help"]).stdout.replace("│", " ").split())
    assert all(f"{name} {line}" in listed for name, line in first_lines.items())
    assert "<bool>" not in listed


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS)], ids=" ".join)
def test_help_loads_no_library(arguments: Sequence[str]) -> None:
    """Help is there at once. Typer itself parses the options of a command with pydantic."""
    heavy = {"numpy", "pandas", "pyarrow", "scipy", "torch", "yaml"}
    loaded = modules_after(arguments)
    assert not loaded & (heavy | ({"pydantic"} if arguments == ["--help"] else set()))
    assert loaded & {"rich", "typer"} == {"rich", "typer"}


@pytest.mark.parametrize("name", ["diagnose", "runs", "recover"])
def test_a_command_that_reads_a_run_loads_no_pandas(name: str, tmp_path: Path) -> None:
    """These commands work in Arrow: importing pandas would take longer than most of them."""
    root = RunBuilder(root=tmp_path / "run").write()
    assert not modules_after([name, str(root)]) & {"pandas", "torch"}


def modules_after(arguments: Sequence[str]) -> set[str]:
    """The modules that a fresh interpreter has loaded after a call of the command line."""
    code = (
        "import sys\n"
        "from ava_pipeline.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_the_help_of_validate_shows_the_rule_in_its_brackets() -> None:
    """The library that prints the help takes brackets for markup."""
    assert "what is wrong [rule]." in CliRunner().invoke(cli.app, ["validate", "--help"]).stdout


def test_a_file_is_evaluated(tmp_path: Path) -> None:
    """A line, its interval, and the constant predictor's line, with dashes for metrics that it does not define."""
    found = CliRunner().invoke(cli.app, ["evaluate", str(predictions(tmp_path / "val_epoch_000.parquet"))])
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert lines[1].split() == ["file", "images", "emd_r1", "emd_r2", "SRCC", "PLCC", "acc.", "mae", "rmse"]
    assert lines[2].startswith("val_epoch_000 ")
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines[3:5]] == ["from", "to"]
    assert lines[5].split()[4:6] == ["–", "–"]  # noqa: RUF001  # the dash that is printed.
    assert "generated" not in found.stdout


def test_a_run_is_evaluated_epoch_by_epoch(tmp_path: Path) -> None:
    """Files are sorted by name, and generated data is labelled."""
    for epoch in (1, 0):
        predictions(tmp_path / f"run/predictions/val_epoch_00{epoch}.parquet")
    (tmp_path / "run/config.yaml").write_text("data: {sample: {num_images: 10}}\n")
    for path in ("run", "run/predictions/val_epoch_001.parquet"):
        found = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / path)])
        assert "generated, not AVA" in found.stdout
    found_json = json.loads(CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "run"), "--json"]).stdout)
    assert [Path(file["file"]).stem for file in found_json["files"]] == ["val_epoch_000", "val_epoch_001"]
    assert found_json["generated"] is True
    assert found_json["files"][0]["constant_predictor"]["srcc"] is None


def test_the_other_files_are_evaluated_if_one_cannot_be_read(tmp_path: Path) -> None:
    """It is reported, the others are evaluated in order, and the status is 1."""
    for epoch in (0, 1, 101, 1000):
        predictions(tmp_path / f"run/predictions/val_epoch_{epoch:03d}.parquet")
    torn, empty = (tmp_path / f"run/predictions/val_epoch_{epoch:03d}.parquet" for epoch in (1, 101))
    torn.write_bytes(torn.read_bytes()[:-100])
    pd.read_parquet(empty).iloc[:0].to_parquet(empty)
    found = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "run"), "--json"])
    printed = json.loads(found.stdout)
    assert [(file["set"], file["epoch"]) for file in printed["files"]] == [("val", 0), ("val", 1000)]
    assert list(printed["problems"]) == [str(torn), str(empty)]
    assert "no rows" in printed["problems"][str(empty)]
    assert found.exit_code == 1
    listed = CliRunner().invoke(cli.app, ["runs", str(tmp_path / "run"), "--json"])
    (run,) = json.loads(listed.stdout)["runs"]
    assert run["best"]["srcc"]["epoch"] in {0, 1000}
    assert str(torn) in run["problem"]


def test_evaluating_needs_no_torch(tmp_path: Path) -> None:
    """A laptop without torch can evaluate predictions."""
    path = predictions(tmp_path / "val_epoch_000.parquet")
    assert "torch" not in modules_after(["evaluate", str(path), "--json"])


@pytest.mark.parametrize(
    ("content", "sentence", "status"),
    [
        (None, "no predictions found. Give a run directory", 2),
        (b"epoch\n", "is not a Parquet file. Give a run directory", 2),
        (b"", "is not a Parquet file. Give a run directory", 2),
        (b"PAR1torn", "cannot be read as Parquet", 1),
    ],
    ids=["missing", "csv", "empty", "torn"],
)
def test_a_path_that_cannot_be_evaluated_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    sentence: str,
    status: int,
) -> None:
    """The error is one sentence without a traceback."""
    path = tmp_path / "val.parquet"
    if content is not None:
        path.write_bytes(content)
    assert status_of(monkeypatch, ["evaluate", str(path)]) == status
    message = capsys.readouterr().err
    assert sentence in message
    assert "Traceback" not in message


def test_parquet_without_predictions_names_the_missing_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says more than that the file is wrong."""
    path = predictions(tmp_path / "val.parquet")
    pd.read_parquet(path).drop(columns="gt_dist_3").to_parquet(path)
    assert status_of(monkeypatch, ["evaluate", str(path)]) == 1
    assert "it has no columns gt_dist_3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["validate", ""],
        ["trian"],
        ["train", "x.yaml", "--resume", "--restart"],
        ["train", "x.yaml", "--restrat"],
        [],
    ],
    ids=["nothing", "no path", "command", "both", "option", "empty"],
)
def test_wrong_usage_is_status_2(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """The status of wrong usage is the same for every command."""
    assert status_of(monkeypatch, arguments) == 2


def test_a_wrong_setting_is_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is that of the config, and torch is not imported before."""
    arguments = ["train", str(config_file(tmp_path)), "--set", "train.epoch=3"]
    assert status_of(monkeypatch, arguments) == 2
    assert "unknown key; did you mean 'epochs'?" in capsys.readouterr().err
    assert status_of(monkeypatch, ["train", str(config_file(tmp_path)), "--output-dir", ""]) == 2
    assert "output_dir: expected a path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ("telemetry.groups.x=nope.*", "telemetry.groups: Column 'x': no parameter's name matches 'nope.*'."),
        ("telemetry.groups.a,b=mlp_head.*", "telemetry.groups: 'a,b' cannot name a column"),
    ],
)
def test_a_group_of_nothing_is_status_2(
    group: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the key, and no image is generated or read before."""
    assert status_of(monkeypatch, ["train", str(config_file(tmp_path)), "--set", group]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("missing", ["AVA.txt", "images"])
def test_missing_input_is_status_2(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the missing labels or images."""
    images = tmp_path / "data/images"
    images.mkdir(parents=True)
    votes = " ".join("1" * 10)
    (tmp_path / "data/AVA.txt").write_text("".join(f"{row} {row} {votes} 0 0 1\n" for row in range(1, 41)))
    if missing == "images":
        images.rmdir()
    else:
        (tmp_path / "data/AVA.txt").unlink()
    assert status_of(monkeypatch, ["train", str(config_file(tmp_path)), "--set", "data.sample=null"]) == 2
    assert missing in capsys.readouterr().err


def test_a_used_directory_is_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the options that continue or restart."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.csv").write_text("epoch\n")
    assert status_of(monkeypatch, ["train", str(config_file(tmp_path))]) == 2
    assert "--resume" in capsys.readouterr().err


def test_an_internal_error_is_status_3_and_shows_its_traceback_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is one sentence that says how to see the traceback."""

    def broken(_path: Path) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("ava_pipeline.read.predictions.is_generated", broken)
    assert status_of(monkeypatch, ["evaluate", str(tmp_path)]) == 3
    assert "ZeroDivisionError: ours. Set AVA_PIPELINE_TRACEBACK=1" in capsys.readouterr().err
    monkeypatch.setenv("AVA_PIPELINE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_with_a_checkpoint_and_says_how_to_go_on(signum: signal.Signals, tmp_path: Path) -> None:
    """The status has the signal; the summary names epochs, norms, cost, files and how to continue."""
    done = command(tmp_path, "--restart", signum=signum, batch=6)
    assert done.returncode == 128 + signum, done.stderr
    assert (tmp_path / "run/checkpoints/last.pt").exists()
    assert "Ending after this batch, with a checkpoint" in done.stderr
    for part in (
        "generated, not AVA",
        "constant",
        "mlp_layer_0",
        "telemetry.step took ",
        "Files: ",
        f"Stopped by {signum.name}, with a checkpoint. To continue, run it again with --resume and without --restart.",
    ):
        assert part in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("place", "options", "remedy"),
    [
        ("data.prepare.scan_images", (), "run the same command with --resume to start or continue."),
        ("job.build_model", ("--restart",), "run the same command again."),
    ],
)
def test_ctrl_c_before_training_is_one_sentence(
    place: str, options: Sequence[str], remedy: str, tmp_path: Path
) -> None:
    """While images are checked or weights are loaded, it ends with status 130 and no traceback.

    With --restart the older run is still in place, and --resume would continue that one.
    """
    module, _, function = f"ava_pipeline.train.{place}".rpartition(".")
    script = (
        "import importlib, os, signal\n"
        "from ava_pipeline.cli import main\n"
        f"module = importlib.import_module({module!r})\n"
        f"module.{function} = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "train", str(config_file(tmp_path)), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.startswith("Ended by Ctrl-C before training began.")
    assert done.stderr.endswith(f"{remedy}\n")
    assert done.stderr.count("\n") == 1


def test_a_quiet_run_prints_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose output is not read stays silent, except for warnings."""
    run(tmp_path, "train.epochs=1")
    found = CliRunner().invoke(
        cli.app, ["train", str(config_file(tmp_path)), "--set", "train.epochs=1", "--resume", "--quiet"]
    )
    assert (found.exit_code, found.output) == (0, "")


@pytest.mark.parametrize("text", ["a: !!python/name:os.system\n", "a: [1", "a: &x [1]\nb: *x\n"])
def test_a_hostile_config_beside_predictions_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config only says whether the data was generated; nothing in it is executed or expanded."""
    predictions(tmp_path / "run/predictions/val_epoch_000.parquet")
    (tmp_path / "run/config.yaml").write_text(text)
    assert status_of(monkeypatch, ["evaluate", str(tmp_path / "run")]) == 1
    assert "config.yaml cannot be read" in capsys.readouterr().err
