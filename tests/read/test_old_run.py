"""Directories of hand-written collectors are runs: batches counted on, zeros null, a status with its proof."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ava_pipeline.contract.arrays import floats, integers
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import status_now
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.diagnose.diagnose import diagnose_run
from ava_pipeline.errors import NotARunError
from ava_pipeline.many_runs.summary import summary_of
from ava_pipeline.read.run import open_run
from tests.read.old_runs import NORMS, log_text, norms_of, old_run, write_json, write_rows
from tests.validate.building import RunBuilder


def batches_of(root: Path, table: str = "gradient_norms") -> list[int]:
    """The batches of a run's table, as `open_run` gives them."""
    return open_run(root).table(table)["batch_idx"].tolist()


def places_of(root: Path) -> list[int]:
    """The batches in the order that plots use."""
    return list(map(int, integers(open_run(root).ordered("gradient_norms"), "batch_idx")))


def notes_of(root: Path) -> str:
    """What is assumed about a run."""
    return "\n".join(note.message for note in open_run(root).notes())


def test_batches_count_on_where_the_log_knows_them(tmp_path: Path) -> None:
    """7 batches an epoch, though the last recorded one is 6: the rows alone would not have shown it."""
    root = old_run(tmp_path / "run", log=log_text(epochs=3, batches=7))
    assert batches_of(root) == [2, 4, 6, 9, 11, 13, 16, 18, 20]
    assert places_of(root) == batches_of(root)
    assert "training.log, which names 7 batches per epoch" in notes_of(root)


def test_batches_count_on_where_a_table_has_each_of_them(tmp_path: Path) -> None:
    """A table with a row of every batch proves how many an epoch has, also if epochs differ."""
    root = old_run(tmp_path / "run", epochs=2)
    path = root / "telemetry" / "losses.csv"
    for epoch, num in ((0, 7), (1, 6)):
        write_rows(path, ("batch_idx", "epoch", "loss"), [(batch, epoch, 0.5) for batch in range(1, num + 1)])
    assert batches_of(root) == [2, 4, 6, 9, 11, 13]
    assert "losses.csv, which has a row of each batch" in notes_of(root)


def test_every_nth_batch_proves_no_number_of_batches(tmp_path: Path) -> None:
    """Each epoch ends at row 6, as with 6 and with 7 batches: rows stay as they are, and a place orders them."""
    root = old_run(tmp_path / "run")
    assert batches_of(root) == [2, 4, 6] * 3
    assert places_of(root) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert open_run(root).place_text(10) == "epoch 1, batch 4"
    assert "none of them says how many batches an epoch has" in notes_of(root)
    assert summary_of("run", RunLayout(root)).last_batch is None


def test_findings_of_uncounted_batches_name_epoch_and_batch(tmp_path: Path) -> None:
    """A norm that is not finite in epoch 1 at batch 4: no batch number over the run is claimed, in JSON neither."""
    root = tmp_path / "run"
    path = root / "telemetry" / "gradient_norms.csv"
    write_rows(path, NORMS, norms_of(0, (2, 4, 6)))
    write_rows(path, NORMS, [(2, 1, 13.0, 0.0, 5.0, 3.0, 4.0), (4, 1, "nan", 0.0, "nan", "nan", 4.0)])
    found = next(finding for finding in diagnose_run(root).findings if finding.id == "non-finite")
    assert found.place == "epoch 1, batch 4"
    assert found.to_json()["batch_idx"] is None
    assert found.to_json()["epoch"] == 1


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (log_text(epochs=3, batches=5), "fewer batches than were recorded"),
        (log_text(epochs=3, batches=7) + "Batch 1/9\n", "two totals"),
    ],
)
def test_a_log_that_contradicts_proves_nothing(log: str, why: str, tmp_path: Path) -> None:
    """Totals that cannot be those of the rows, or that differ, are no count."""
    root = old_run(tmp_path / "run", log=log)
    assert batches_of(root) == [2, 4, 6] * 3, why
    assert places_of(root) == [2, 4, 6, 8, 10, 12, 14, 16, 18], why


def test_batches_that_count_over_the_run_stay(tmp_path: Path) -> None:
    """A collector that counts on itself is left alone, whatever the log says."""
    root = tmp_path / "run"
    for epoch, batches in enumerate([(2, 4, 6), (8, 10, 12)]):
        write_rows(root / "telemetry" / "gradient_norms.csv", NORMS, norms_of(epoch, batches))
    (root / "training.log").write_text(log_text(epochs=2, batches=6))
    assert batches_of(root) == [2, 4, 6, 8, 10, 12]
    assert "starts again" not in notes_of(root)


def test_batches_from_zero_begin_at_one(tmp_path: Path) -> None:
    """An `enumerate` index: batch 0 is the first."""
    root = old_run(tmp_path / "run", epochs=2, batches=(0, 2, 4), log=log_text(epochs=2, batches=6))
    assert batches_of(root) == [1, 3, 5, 7, 9, 11]
    assert "begins at 0" in notes_of(root)


def test_zeros_that_no_gradient_has_are_null(tmp_path: Path) -> None:
    """A column of zeros beside others, and a row of zeros: not measured. A single 0 is a number."""
    root = tmp_path / "run"
    rows = norms_of(0, (1, 2, 3))
    rows[1] = (2, 0, *[0.0] * 5)
    rows[2] = (3, 0, 16.0, 0.0, 4.0, 0.0, 4.0)
    write_rows(root / "telemetry" / "gradient_norms.csv", NORMS, rows)
    found = open_run(root).gradient_norms()
    assert found["backbone_layer4"].isna().all()
    assert found["overall"].isna().tolist() == [False, True, False]
    assert found["mlp_layer_0"].tolist()[0::2] == [3.0, 0.0]
    assert open_run(root).manifest.groups["backbone_layer4"].role == "other"
    assert "backbone_layer4 is 0 in every row" in notes_of(root)


def test_an_unmeasured_backbone_is_no_finding(tmp_path: Path) -> None:
    """24 rows without a norm of the backbone: neither 'not learning' nor a dead layer, and the gap is named."""
    root = old_run(tmp_path / "run", epochs=3, batches=range(1, 9))
    found = diagnose_run(root)
    assert [finding.id for finding in found.findings if finding.severity != "info"] == []
    assert found.verdict == "healthy"
    assert {"no-manifest", "not-measured"} <= {finding.id for finding in found.findings}
    assert not any(sign.id in {"backbone-learning", "rows-complete"} for sign in found.healthy)


def test_a_dead_layer_is_found(tmp_path: Path) -> None:
    """The signs see the roles: a layer whose norm is a millionth of the head's over 24 rows."""
    root = tmp_path / "run"
    rows = [(batch, 0, 13.0, 2.0, 5.0, 5e-6, 5.0) for batch in range(1, 25)]
    write_rows(root / "telemetry" / "gradient_norms.csv", NORMS, rows)
    found = diagnose_run(root)
    assert [(finding.id, finding.column) for finding in found.findings if finding.severity == "warning"] == [
        ("dead-layer", "mlp_layer_0")
    ]


def test_deltas_begin_with_null(tmp_path: Path) -> None:
    """The first row has nothing to compare with; the batches between rows follow from the counted ones."""
    root = tmp_path / "run"
    path = root / "telemetry" / "weight_deltas.csv"
    header = ("batch_idx", "epoch", "overall", "backbone", "head")
    write_rows(path, header, [(2, 0, 0.0, 0.0, 0.0), (4, 0, 0.5, 0.4, 0.3), (2, 1, 0.5, 0.4, 0.3)])
    (root / "training.log").write_text(log_text(epochs=2, batches=5))
    found = open_run(root).table("weight_deltas")
    assert found["overall"].isna().tolist() == [True, False, False]
    assert found["num_batches"].tolist()[1:] == [2, 3]
    assert found["num_batches"].isna().tolist() == [True, False, False]
    (root / "training.log").unlink()
    assert open_run(root).table("weight_deltas")["num_batches"].isna().tolist() == [True, False, True]


def test_a_foreign_table_is_long_where_a_batch_has_several_rows(tmp_path: Path) -> None:
    """The fewest columns that tell its rows apart are its key; True and False are booleans, an empty field is null."""
    root = tmp_path / "run"
    rows = [(1, 0, 0, "a", True, 1.5), (1, 0, 1, "a", False, ""), (2, 0, 0, "b", True, "nan")]
    header = ("batch_idx", "epoch", "sample_idx", "image", "correct", "loss")
    write_rows(root / "telemetry" / "samples.csv", header, rows)
    run = open_run(root)
    assert run.manifest.tables["samples"].declaration.table.row_key == ("sample_idx",)
    found = run.arrow("samples")
    assert found["correct"].to_pylist() == [True, False, True]
    assert found["loss"].to_pylist()[:2] == [1.5, None]
    assert np.isnan(floats(found, "loss")[2])
    assert found["loss"].null_count == 1


def test_tables_beside_the_run_and_in_parquet(tmp_path: Path) -> None:
    """A directory that itself holds the tables, of which one is Parquet of another program."""
    root = tmp_path / "run"
    write_rows(root / "gradient_norms.csv", NORMS, norms_of(0, (2, 4)))
    rates = pa.table({"batch_idx": [2, 4], "epoch": [0, 0], "lr_group_0": [1e-3, 1e-3]})
    write_parquet(root / "learning_rates.parquet", rates)
    write_rows(root / "labels.csv", ("image", "label"), [("a.jpg", 1)])
    assert sorted(open_run(root).manifest.tables) == ["gradient_norms", "learning_rates"]
    assert open_run(root).learning_rates()["lr_group_0"].tolist() == [1e-3, 1e-3]


def test_a_second_training_in_the_same_files(tmp_path: Path) -> None:
    """Collectors append: the rows are those of the last training, and the others are named."""
    root = old_run(tmp_path / "run", epochs=2)
    write_rows(root / "telemetry" / "gradient_norms.csv", NORMS, norms_of(0, (2, 4)))
    assert batches_of(root) == [2, 4]
    assert "begins with 6 rows of an earlier training" in notes_of(root)


def test_a_damaged_table_is_an_error_and_never_healthy(tmp_path: Path) -> None:
    """A text among numbers does not make a table of texts."""
    root = old_run(tmp_path / "run", epochs=3, batches=range(1, 9))
    path = root / "telemetry" / "gradient_norms.csv"
    path.write_bytes(path.read_bytes().replace(b"16.0", b"1x.0", 1))
    found = diagnose_run(root)
    assert found.verdict == "not healthy"
    assert found.findings[-1].id == "unreadable"
    assert "row 3: expected a number, got '1x.0'" in found.findings[-1].message


def touch(root: Path, *, hours: float) -> None:
    """Make every file as old as that."""
    when = (datetime.now(UTC) - timedelta(hours=hours)).timestamp()
    for path in root.rglob("*"):
        os.utime(path, (when, when))


@pytest.mark.parametrize(
    ("history", "results", "end", "status"),
    [
        (3, None, "", "finished"),
        (2, None, "", "killed"),
        (2, None, "Early stopping at epoch 2", "finished"),
        (2, 0.5, "", "finished"),
        (2, None, "Traceback (most recent call last)", "failed"),
        (2, None, "KeyboardInterrupt", "interrupted"),
        (None, None, "", "unknown"),
    ],
)
def test_the_status_is_what_the_files_prove(
    history: int | None, results: float | None, end: str, status: str, tmp_path: Path
) -> None:
    """Three epochs were planned; a run without proof of its end is unknown, and one that lacks epochs was killed."""
    root = old_run(tmp_path / "run", log=log_text(epochs=3, batches=6, end=end))
    if history is not None:
        write_json(root / "training_history.json", {"train_loss": [0.5] * history})
    if results is not None:
        write_json(root / "results.json", {"test_acc": results})
    touch(root, hours=3)
    assert status_now(open_run(root).manifest, datetime.now(UTC)) == status
    summary = summary_of("run", RunLayout(root))
    assert (summary.status, summary.origin, summary.problem) == (status, "no manifest", None)


def test_a_history_gives_metrics(tmp_path: Path) -> None:
    """Lists by epoch are metrics, padded with null; other values are left out. `runs` knows the best of each."""
    root = old_run(tmp_path / "run")
    history = {"train_loss": [0.5, 0.25, 0.3], "val_spearman": [0.1, 0.4], "note": "x", "a b": [1.0]}
    write_json(root / "training_history.json", history)
    found = open_run(root).metrics()
    assert list(found.columns) == ["epoch", "train_loss", "val_spearman"]
    assert found["train_loss"].tolist() == [0.5, 0.25, 0.3]
    assert found["val_spearman"].isna().tolist() == [False, False, True]
    best = summary_of("run", RunLayout(root)).best
    assert (best["train_loss"].value, best["train_loss"].epoch, best["srcc"].value) == (0.25, 1, 0.4)


def test_a_run_of_ours_without_its_manifest_is_no_old_run(tmp_path: Path) -> None:
    """Our metadata in Parquet, and events of ours where only CSV was written: the loss stays an error."""
    for formats in (("csv", "parquet"), ("csv",)):
        root = RunBuilder(root=tmp_path / "-".join(formats), formats=formats).write()
        (root / "telemetry" / "manifest.json").unlink()
        assert open_run(root).old is None
        with pytest.raises(NotARunError, match=r"manifest\.json does not exist"):
            _ = open_run(root).manifest


def test_the_folder_of_a_run_is_not_a_second_run(tmp_path: Path) -> None:
    """`telemetry/` itself is refused, and the error names the run."""
    root = old_run(tmp_path / "run")
    with pytest.raises(NotARunError, match=r"open .*run instead"):
        open_run(root / "telemetry")


def test_nothing_is_written(tmp_path: Path) -> None:
    """Reading changes no file and adds none."""
    root = old_run(tmp_path / "run", log=log_text(epochs=3, batches=6))
    copy = shutil.copytree(root, tmp_path / "copy")
    open_run(root).gradient_norms()
    diagnose_run(root)
    summary_of("run", RunLayout(root))
    files = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert files == {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_links_out_of_the_run_are_not_followed(tmp_path: Path) -> None:
    """A table that is a link to elsewhere is named, and not read."""
    root = old_run(tmp_path / "run")
    outside = write_rows(tmp_path / "outside.csv", NORMS, norms_of(0, (2,)))
    (root / "telemetry" / "more.csv").symlink_to(outside)
    with pytest.raises(ValueError, match="is a link out of the run directory"):
        open_run(root)
