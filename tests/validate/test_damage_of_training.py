"""Files that the config of a run of `ava-pipeline train` promises, and damage to them."""

import shutil
import zipfile
from pathlib import Path

import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.validate.validate import validate_file, validate_run
from tests.validate.building import NOW, RunBuilder, prediction_rows
from tests.validate.damaging import cut, edit_manifest
from tests.validate.test_damage import EVENTS, NORMS, VAL, Damage, assert_only_this_is_found, cell, field

CONFIG = """
output_dir: run
data: {labels: AVA.txt, images: images}
train: {batch_size: 2}
telemetry: {collect_every_n: 10}
"""
CHECKPOINT = "checkpoints/last.pt"


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def remove(run: Path, *names: str) -> None:
    """Delete files and folders."""
    for name in names:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def with_crlf(path: Path) -> None:
    """Turn the line ends of a file into CRLF."""
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def train_run(root: Path, **changes: object) -> Path:
    """A run with every file that training writes."""
    RunBuilder(root=root, **changes).write()  # type: ignore[arg-type]  # a test's own changes
    edit_manifest(root, lambda manifest: manifest.update(run_info={"job": "ava-pipeline train"}))
    (root / "config.yaml").write_text(CONFIG)
    (root / "split.csv").write_text("image_id,set\n" + "".join(f"{number},train\n" for number in range(80)))
    (root / CHECKPOINT).parent.mkdir()
    with zipfile.ZipFile(root / CHECKPOINT, "w") as parts:
        parts.writestr("last/data.pkl", bytes(500))
        parts.writestr("last/data/0", bytes(5000))
    return root


def too_short_for_a_row(run: Path) -> None:
    """Three epochs of 40 batches, of which no row is collected."""
    remove(run, "telemetry")
    (run / "config.yaml").write_text(CONFIG.replace("collect_every_n: 10", "collect_every_n: 121"))


def crlf(file: str, row: int | None = None) -> Damage:
    """A CSV file with CRLF line ends."""
    return Damage(f"{file} with CRLF", lambda run: with_crlf(run / file), "files.line-end", file, row)


DAMAGES = [
    Damage(
        "telemetry is gone",
        lambda run: shutil.rmtree(run / "telemetry"),
        "manifest.missing",
        "telemetry/manifest.json",
    ),
    Damage(
        "predictions are gone",
        lambda run: shutil.rmtree(run / "predictions"),
        "metrics.predictions",
        "metrics.csv",
        3,
        "epoch",
    ),
    Damage("metrics are gone", lambda run: (run / "metrics.csv").unlink(), "metrics.missing", "metrics.csv"),
    Damage(
        "metrics and predictions are gone",
        lambda run: remove(run, "metrics.csv", "predictions"),
        "metrics.missing",
        "metrics.csv",
    ),
    Damage(
        "the run is too short for a row",
        too_short_for_a_row,
        "telemetry.no-row",
        "config.yaml",
    ),
    Damage(
        "the config is none",
        lambda run: (run / "config.yaml").write_text("output_dir: x\ndat: {}\n"),
        "config.invalid",
        "config.yaml",
    ),
    Damage("the config is gone", lambda run: (run / "config.yaml").unlink(), "config.missing", "config.yaml"),
    Damage(
        "config and telemetry are gone",
        lambda run: remove(run, "config.yaml", "telemetry"),
        "config.missing",
        "config.yaml",
    ),
    Damage(
        "an epoch's predictions are gone",
        lambda run: (run / f"{VAL}1.parquet").unlink(),
        "metrics.predictions",
        "metrics.csv",
        2,
        "epoch",
        frozenset({"predictions.epoch"}),
    ),
    Damage(
        "an epoch's predictions are gone, found by the set",
        lambda run: (run / f"{VAL}1.parquet").unlink(),
        "predictions.epoch",
        f"{VAL}1.parquet",
        also=frozenset({"metrics.predictions"}),
    ),
    field("metrics.csv", 2, "srcc", "0.999", "metrics.mismatch", also=set()),
    field("metrics.csv", 3, "epoch", "1", "metrics.order", also={"metrics.mismatch"}),
    field("metrics.csv", 1, "emd_r1", "-1", "values.range", also={"metrics.mismatch"}),
    cell((0, 6, "gt_mean"), 1.0, "predictions.mean", also={"metrics.mismatch", "predictions.truth"}),
    Damage("a checkpoint's byte is flipped", lambda run: flip(run / CHECKPOINT, 2000), "files.checkpoint", CHECKPOINT),
    Damage("a checkpoint is cut short", lambda run: cut(run / CHECKPOINT, 100), "files.checkpoint", CHECKPOINT),
    crlf(f"{NORMS}.csv"),
    crlf("metrics.csv"),
    Damage(
        "one line ends in CRLF",
        lambda run: (run / f"{NORMS}.csv").write_bytes(
            b"\n".join(
                line + (b"\r" if row == 4 else b"")
                for row, line in enumerate((run / f"{NORMS}.csv").read_bytes().split(b"\n"))
            )
        ),
        "files.line-end",
        f"{NORMS}.csv",
        4,
    ),
]


@pytest.fixture(scope="module")
def valid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run, which validates clean."""
    root = train_run(tmp_path_factory.mktemp("sound") / "run")
    assert validate_run(root) == []
    return root


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_found_and_located(damage: Damage, valid_run: Path, tmp_path: Path) -> None:
    """One finding names the rule, the file, the row and the column; unrelated rules report nothing."""
    assert_only_this_is_found(damage, valid_run, tmp_path)


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        ("save_val_predictions: false", "predictions"),
        ("telemetry: {enabled: false}", "telemetry"),
    ],
    ids=["predictions", "telemetry"],
)
def test_what_the_config_does_not_promise_may_be_missing(line: str, gone: str, valid_run: Path, tmp_path: Path) -> None:
    """If the config turns a file off, its absence is not a finding."""
    run = shutil.copytree(valid_run, tmp_path / "run")
    text = CONFIG.replace("telemetry: {collect_every_n: 10}\n", "") if line.startswith("telemetry") else CONFIG
    (run / "config.yaml").write_text(f"{text}{line}\n")
    shutil.rmtree(run / gone)
    assert validate_run(run) == []


def test_a_running_run_has_not_kept_its_promises_yet(tmp_path: Path) -> None:
    """Before the first epoch ends, metrics.csv does not exist."""
    assert validate_run(train_run(tmp_path / "run", status="running"), now=NOW) == []


def test_a_foreign_loop_promises_nothing(valid_run: Path, tmp_path: Path) -> None:
    """Telemetry, metrics.csv and a checkpoint of another format without a config give no finding."""
    run = shutil.copytree(valid_run, tmp_path / "run")
    (run / "config.yaml").unlink()
    (run / "split.csv").unlink()
    (run / CHECKPOINT).write_bytes(b"a pickle")
    edit_manifest(run, lambda manifest: manifest.update(run_info={}))
    assert validate_run(run) == []


def test_a_foreign_loop_validates_and_logs_as_it_likes(tmp_path: Path) -> None:
    """Epochs may be missing, images may differ between batches and epochs, and metrics need no predictions."""
    run = RunBuilder(root=tmp_path / "run").write()
    layout = RunLayout(run)
    layout.epoch_predictions(1).unlink()
    for batch_idx in (20, 60):
        write_parquet(layout.epoch_predictions(0, batch_idx=batch_idx), prediction_rows([1, 2, 3], seed=batch_idx))
    (run / "metrics.csv").write_text(
        "epoch,batch_idx,srcc,top-5\n0,20,0.1,\n0,,nan,-7\n4,200,inf,2e300\n4,201,,\n9,,-2,0\n"
    )
    assert validate_run(run) == []


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ("0,20,1\n0,20,1\n", (2, "epoch")),
        ("0,,1\n0,20,1\n", (2, "epoch")),
        ("1,20,1\n0,30,1\n", (2, "epoch")),
        ("0,20,1\n1,,1\n2,20,1\n", (3, "batch_idx")),
    ],
    ids=["twice", "after its epoch", "an epoch goes back", "a batch goes back"],
)
def test_rows_of_metrics_that_go_back_are_found(rows: str, place: tuple[int, str], tmp_path: Path) -> None:
    """The batches of a run are counted across its epochs; an epoch's own row comes after those of its batches."""
    run = RunBuilder(root=tmp_path / "run").write()
    (run / "metrics.csv").write_text(f"epoch,batch_idx,loss\n{rows}")
    (found,) = validate_run(run)
    assert (found.id, found.file, (found.row, found.column)) == ("metrics.rows", "metrics.csv", place)
    assert [one.id for one in validate_file(run / "metrics.csv")] == ["metrics.rows"]


def test_predictions_after_batches_are_compared_with_each_other(tmp_path: Path) -> None:
    """They have the same images, as the epochs of a set do."""
    layout = RunLayout(RunBuilder(root=tmp_path / "run").write())
    for batch_idx, images in ((20, [1, 2, 3]), (60, [1, 2, 4])):
        write_parquet(layout.epoch_predictions(0, batch_idx=batch_idx), prediction_rows(images, seed=batch_idx))
    found = {(one.id, one.file) for one in validate_run(layout.root)}
    assert found == {("predictions.ids", "predictions/val_epoch_000_batch_00000060.parquet")}


def test_text_may_hold_any_line_end(tmp_path: Path) -> None:
    """The message of an event is quoted as it is, with its line ends."""
    run = RunBuilder(root=tmp_path / "run").write()
    header = "batch_idx,batch_idx_end,epoch,time_utc,event,severity,column,value,message\n"
    (run / EVENTS).write_bytes(
        header.encode() + b'20,20,0,2026-01-02T03:04:05.678901Z,non_finite,warning,loss,,"a\r\nb"\n'
    )
    assert [found for found in validate_run(run) if found.id == "files.line-end"] == []
