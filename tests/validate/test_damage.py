"""Every type of damage to a run directory is found, and located by rule, file, row and column."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.finding import Finding
from ava_pipeline.validate.validate import RULES, validate_run
from tests.validate.building import RunBuilder
from tests.validate.damaging import cut, delete_line, edit_lines, edit_manifest, edit_parquet, set_cell, set_field

NORMS = "telemetry/gradient_norms"
RATES = "telemetry/learning_rates"
STEPS = "telemetry/steps"
EVENTS = "telemetry/events.csv"
MANIFEST = "telemetry/manifest.json"
SNAPSHOTS = "telemetry/weight_snapshots"
VAL = "predictions/val_epoch_00"
UNEQUAL = "files.csv-parquet"


@dataclass(frozen=True)
class Damage:
    """One type of damage, where the finding must be, and which other rules it breaks."""

    name: str
    do: Callable[[Path], object]
    rule: str
    file: str
    row: int | None = None
    column: str | None = None
    also: frozenset[str] = frozenset()


def snapshot(run: Path, batch_idx: int, *, folder: str = SNAPSHOTS, tied: str = "{}") -> Path:
    """Write weights of a batch."""
    path = run / folder / f"weights_epoch0_batch{batch_idx}.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"in": np.ones(2)}, path, {"batch_idx": str(batch_idx), "epoch": "0", "tied": tied})
    return path


def field(file: str, row: int, column: str, value: str, rule: str, *, also: set[str] | None = None) -> Damage:
    """Overwrite a field of a CSV file."""
    others = frozenset({UNEQUAL} if also is None else also) - {rule}
    name = f"{file.rpartition('/')[2]} {column}={value}"
    return Damage(name, lambda run: set_field(run / file, row, column, value), rule, file, row, column, others)


def both(table: str, row: int, column: str, value: float | None, rule: str, *, at: str | None = None) -> Damage:
    """Overwrite a number in CSV and Parquet; `at` is the column of the finding, if it is another column."""

    def do(run: Path) -> None:
        set_field(run / f"{table}.csv", row, column, "" if value is None else str(value))
        set_cell(run / f"{table}.parquet", row, column, value)

    return Damage(f"{table} {column}={value} in both formats", do, rule, f"{table}.csv", row, at or column)


def cell(
    where: tuple[int, int, str], value: object, rule: str, *, at: str | None = None, also: set[str] | None = None
) -> Damage:
    """Overwrite a value in a file of predictions, by epoch, row and column."""
    epoch, row, column = where
    file = f"{VAL}{epoch}.parquet"
    do = lambda run: set_cell(run / file, row, column, value)  # noqa: E731  # one line, used once
    others = frozenset(also or ())
    return Damage(f"predictions {column}={value}", do, rule, file, row, at or column, others)


def manifest(place: str, value: object, rule: str, *, also: set[str] | None = None) -> Damage:
    """Overwrite a value of the manifest."""

    def edit(found: object) -> None:
        *parents, last = place.split(".") if "rows" not in place else place.split(".", 3)
        for key in parents:
            found = found[int(key) if key.isdigit() else key]  # type: ignore[index]  # JSON
        found[last] = value  # type: ignore[index]  # JSON

    return Damage(
        f"manifest {place}={value}",
        lambda run: edit_manifest(run, edit),
        rule,
        MANIFEST,
        None,
        place,
        frozenset(also or ()),
    )


def log_metrics_without_epochs(run: Path) -> None:
    """Rename the column `epoch` of a metrics.csv that the manifest knows as one of log_metrics()."""
    edit_manifest(run, lambda found: found["attempts"][-1].update(logs_metrics=True))
    edit_lines(run / "metrics.csv", lambda lines: [lines[0].replace("epoch", "step"), *lines[1:]])


DAMAGES = [
    # Values of tables.
    both(NORMS, 3, "mlp_layer_0", 0.001, "norms.head-sum", at="mlp_head"),
    both(NORMS, 4, "backbone_layer4", 1e6, "norms.overall"),
    both(NORMS, 5, "mlp_layer_3", None, "norms.head-sum", at="mlp_head"),
    both(RATES, 2, "lr_group_1", -0.5, "values.range"),
    both(RATES, 2, "lr_group_0", float("nan"), "rates.finite"),
    both(RATES, 2, "lr_group_0", None, "values.null"),
    field(f"{NORMS}.csv", 6, "overall", "-1.0", "values.range", also={UNEQUAL, "norms.overall"}),
    field(f"{NORMS}.csv", 7, "mlp_head", "much", "values.dtype", also=set()),
    field(f"{NORMS}.csv", 7, "epoch", "0.5", "values.dtype", also=set()),
    field(f"{STEPS}.csv", 8, "time_utc", "yesterday", "values.dtype", also=set()),
    field(f"{STEPS}.csv", 9, "loss", "0.25", UNEQUAL),
    field(f"{STEPS}.csv", 9, "loss", "nan", UNEQUAL),
    field(f"{STEPS}.csv", 9, "loss_scale", "nan", UNEQUAL),
    field(EVENTS, 1, "event", "surprise", "values.choice", also=set()),
    field(EVENTS, 1, "batch_idx_end", "3", "events.range", also=set()),
    # Rows.
    field(f"{NORMS}.csv", 4, "batch_idx", "30", "rows.order", also={UNEQUAL, "rows.tables"}),
    field(f"{RATES}.csv", 5, "epoch", "0", UNEQUAL, also=set()),
    field(f"{RATES}.csv", 6, "epoch", "0", "rows.epoch"),
    field(f"{STEPS}.csv", 5, "batch_idx", "49", "rows.spacing", also={UNEQUAL, "rows.tables"}),
    Damage(
        "a row is deleted from one CSV",
        lambda run: delete_line(run / f"{NORMS}.csv", 5),
        "rows.tables",
        f"{NORMS}.csv",
        5,
        "batch_idx",
        frozenset({UNEQUAL, "rows.spacing", "counters.rows"}),
    ),
    Damage(
        "a row is deleted from one CSV, found by the Parquet file's row",
        lambda run: delete_line(run / f"{NORMS}.csv", 5),
        UNEQUAL,
        f"{NORMS}.parquet",
        5,
        "batch_idx",
        frozenset({"rows.tables", "rows.spacing", "counters.rows"}),
    ),
    Damage(
        "the last rows of a Parquet file are gone",
        lambda run: edit_parquet(run / f"{STEPS}.parquet", lambda rows: rows.slice(0, 10)),
        "counters.rows",
        f"{STEPS}.parquet",
        also=frozenset({UNEQUAL, "rows.tables"}),
    ),
    # Files.
    Damage(
        "the last CSV line is torn",
        lambda run: cut(run / f"{RATES}.csv", 4),
        "files.torn-line",
        f"{RATES}.csv",
        12,
        also=frozenset({UNEQUAL, "rows.tables", "counters.rows"}),
    ),
    Damage(
        "a CSV line has a field too many",
        lambda run: edit_lines(run / f"{RATES}.csv", lambda lines: [*lines[:3], f"{lines[3]},7", *lines[4:]]),
        "files.line",
        f"{RATES}.csv",
        3,
    ),
    Damage(
        "a CSV column is renamed",
        lambda run: edit_lines(run / f"{RATES}.csv", lambda lines: ["batch_idx,epoch,lr_group_1,lr_0", *lines[1:]]),
        "files.columns",
        f"{RATES}.csv",
    ),
    Damage(
        "a Parquet column is gone",
        lambda run: edit_parquet(run / f"{NORMS}.parquet", lambda rows: rows.drop_columns(["mlp_head"])),
        "files.columns",
        f"{NORMS}.parquet",
    ),
    Damage(
        "a Parquet column has another type",
        lambda run: edit_parquet(
            run / f"{NORMS}.parquet", lambda rows: rows.set_column(2, "overall", rows["overall"].cast(pa.float64()))
        ),
        "files.dtype",
        f"{NORMS}.parquet",
        None,
        "overall",
    ),
    Damage(
        "a Parquet file is cut short",
        lambda run: cut(run / f"{NORMS}.parquet", 100),
        "files.unreadable",
        f"{NORMS}.parquet",
    ),
    Damage("a CSV is gone", lambda run: (run / f"{NORMS}.csv").unlink(), "files.missing", f"{NORMS}.csv"),
    Damage(
        "a file was never finished",
        lambda run: (run / f"{VAL}3.parquet.partial").write_bytes(b"PAR1"),
        "files.leftover",
        f"{VAL}3.parquet.partial",
    ),
    Damage(
        "predictions under another name",
        lambda run: shutil.copy(run / f"{VAL}0.parquet", run / "predictions" / "best.parquet"),
        "files.name",
        "predictions/best.parquet",
    ),
    Damage(
        "a table that the manifest does not know",
        lambda run: (run / "telemetry" / "weights.csv").write_text("batch_idx\n"),
        "files.name",
        "telemetry/weights.csv",
    ),
    # Weight snapshots.
    Damage(
        "a snapshot cannot be read",
        lambda run: snapshot(run, 20).write_bytes(b"no header"),
        "snapshots.unreadable",
        f"{SNAPSHOTS}/weights_epoch0_batch20.safetensors",
    ),
    Damage(
        "a snapshot has the name of another batch",
        lambda run: snapshot(run, 20).rename(run / SNAPSHOTS / "weights_epoch0_batch30.safetensors"),
        "snapshots.batch",
        f"{SNAPSHOTS}/weights_epoch0_batch30.safetensors",
    ),
    Damage(
        "a snapshot names a tensor that it does not hold",
        lambda run: snapshot(run, 20, tied='{"out": "on"}'),
        "snapshots.tied",
        f"{SNAPSHOTS}/weights_epoch0_batch20.safetensors",
    ),
    Damage(
        "a snapshot has no name of its own",
        lambda run: snapshot(run, 20).rename(run / SNAPSHOTS / "best.safetensors"),
        "files.name",
        f"{SNAPSHOTS}/best.safetensors",
    ),
    Damage(
        "a snapshot was never finished",
        lambda run: snapshot(run, 20, folder=f"{SNAPSHOTS}/unfinished"),
        "files.leftover",
        f"{SNAPSHOTS}/unfinished/weights_epoch0_batch20.safetensors",
    ),
    Damage(
        "a snapshot is gone",
        lambda run: edit_manifest(run, lambda found: found["attempts"][0].update(weight_snapshots={"written": 1})),
        "snapshots.missing",
        SNAPSHOTS,
    ),
    # The manifest.
    Damage("the manifest is gone", lambda run: (run / MANIFEST).unlink(), "manifest.missing", MANIFEST),
    Damage("the manifest is cut short", lambda run: cut(run / MANIFEST, 50), "manifest.invalid", MANIFEST),
    manifest("attempts.0.counters.collected", 13, "counters.sum"),
    manifest("attempts.0.counters.pending", 1, "counters.pending", also={"counters.sum"}),
    manifest("attempts.0.rows.gradient_norms.csv", 11, "counters.written", also={"counters.rows"}),
    manifest("attempts.0.number", 2, "manifest.attempts"),
    manifest("status", "failed", "manifest.status"),
    manifest("groups.mlp_layer_0.parent", "mlp", "manifest.groups"),
    # Predictions and metrics.
    cell((1, 4, "pred_dist_3"), 0.9, "predictions.sum", at="pred_dist_1..pred_dist_10"),
    cell((1, 5, "pred_mean"), 9.5, "predictions.mean"),
    cell((0, 6, "gt_mean"), 1.0, "predictions.mean", also={"predictions.truth"}),
    cell((1, 7, "pred_mean"), 11.0, "predictions.bounds", also={"predictions.mean"}),
    cell((2, 6, "gt_mean"), 5.00001, "predictions.truth", also={"predictions.mean"}),
    cell((2, 8, "gt_dist_2"), -0.1, "values.range", also={"predictions.truth", "predictions.sum"}),
    cell((2, 9, "image_id"), 953_000, "predictions.unique", also={"predictions.ids", "predictions.truth"}),
    cell((2, 9, "image_id"), 7, "predictions.ids"),
    cell(
        (2, 9, "gt_mean"),
        None,
        "values.null",
        also={"predictions.mean", "predictions.bounds", "predictions.truth"},
    ),
    Damage(
        "predictions are no Parquet file",
        lambda run: (run / f"{VAL}1.parquet").write_bytes(b"PAR1 and no more"),
        "files.unreadable",
        f"{VAL}1.parquet",
    ),
    field("metrics.csv", 3, "epoch", "1", "metrics.rows", also=set()),
    field("metrics.csv", 2, "epoch", "0", "metrics.rows", also=set()),
    field("metrics.csv", 2, "srcc", "good", "values.dtype", also=set()),
    Damage(
        "metrics have no epochs",
        log_metrics_without_epochs,
        "files.columns",
        "metrics.csv",
    ),
]


def is_plain_message(found: Finding, run: Path) -> bool:
    """The message names no path above the run directory, ends with one period, and is not an error of a library."""
    ends = found.message.endswith(".") and not found.message.endswith("..") and ".. " not in found.message
    return ends and str(run) not in found.message and "Value error" not in found.message


def assert_only_this_is_found(damage: Damage, valid_run: Path, folder: Path) -> None:
    """Damage a copy of a valid run: a finding names the rule, the file, the row and the column."""
    run = shutil.copytree(valid_run, folder / "run")
    damage.do(run)
    findings = validate_run(run)
    assert [found.message for found in findings if not is_plain_message(found, run)] == []
    places = {(found.id, found.file, found.row, found.column) for found in findings}
    assert (damage.rule, damage.file, damage.row, damage.column) in places, places
    assert {found.id for found in findings} == {damage.rule} | damage.also, places


@pytest.fixture(scope="module")
def valid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with an event, which validates clean."""
    event = Event(
        event="non_finite", severity="warning", message="a, b", batch_idx=20, batch_idx_end=20, epoch=0, column="loss"
    )
    root = RunBuilder(root=tmp_path_factory.mktemp("sound") / "run", events=[event]).write()
    assert validate_run(root) == []
    return root


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_found_and_located(damage: Damage, valid_run: Path, tmp_path: Path) -> None:
    """One finding names the rule, the file, the row and the column; unrelated rules report nothing."""
    assert_only_this_is_found(damage, valid_run, tmp_path)


def test_every_rule_is_shown_to_find_something() -> None:
    """Each rule in the list has a type of damage that it finds."""
    of_training = {
        *(
            "config.invalid",
            "config.missing",
            "metrics.missing",
            "telemetry.no-row",
            "files.checkpoint",
            "files.line-end",
            "rows.key",
        ),
        *("metrics.order", "metrics.mismatch", "metrics.predictions", "predictions.epoch"),
    }
    found_elsewhere = {"run.killed", "run.no-manifest", "files.journal", "norms.partition", *of_training}
    assert {rule.id for rule in RULES} == {damage.rule for damage in DAMAGES} | found_elsewhere
