"""The tables of many runs as datasets: every row of every run, and only what a query needs is read."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import ava_pipeline
from ava_pipeline import TelemetryCollector, open_run, runs
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.journal import JournalWriter
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.errors import DamagedFileError, MisuseError, NotARunError
from ava_pipeline.read.run import frame
from tests.validate.building import RATES, RunBuilder, prediction_rows
from tests.validate.damaging import cut, edit_manifest, edit_parquet

TABLES = ("gradient_norms", "learning_rates", "steps")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs: finished; running with journals; crashed within a journal frame and a CSV line; CSV only."""
    RunBuilder(root=tmp_path / "finished").write()
    RunBuilder(root=tmp_path / "alive", status="running", formats=("parquet",)).write()
    crashed = RunBuilder(root=tmp_path / "crashed", status="running").write()
    cut(crashed / "telemetry/gradient_norms.journal", 10)
    cut(crashed / "telemetry/gradient_norms.csv", 5)
    RunBuilder(root=tmp_path / "text", formats=("csv",)).write()
    return tmp_path


def rows_of(dataset: ds.Dataset, name: str) -> pd.DataFrame:
    """The rows of one run, without the column `run`."""
    return frame(dataset.to_table(filter=ds.field("run") == name).drop_columns(["run"]))


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of every file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def damage_column(path: Path, index: int) -> None:
    """Flip a bit at the end of the last page of a column."""
    column = pq.read_metadata(path).row_group(0).column(index)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("table", TABLES)
def test_each_run_has_the_rows_that_open_run_reads(table: str, folder: Path) -> None:
    """Bit for bit, journals and torn files included; and no file is changed."""
    before = state(folder)
    dataset = runs(f"{folder}/*").table(table)
    assert dataset.schema.names[0] == "run"
    for name in ("finished", "alive", "crashed", "text"):
        pd.testing.assert_frame_equal(rows_of(dataset, name), open_run(folder / name).table(table), check_exact=True)
    assert dataset.count_rows() == sum(len(open_run(run).table(table)) for run in folder.iterdir())
    assert state(folder) == before


def test_a_run_is_read_while_it_is_being_written(tmp_path: Path) -> None:
    """A dataset returns rows that were written after it was created, also once the run has ended."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = {"mlp_head": model[1]}
    with TelemetryCollector(model, optimizer, tmp_path / "live", collect_every_n=1, groups=groups) as telemetry:
        for batch in range(1, 4):
            model(torch.ones(2, 4)).sum().backward()
            telemetry.step(0)
            assert telemetry.flush()
            if batch == 1:
                dataset = runs(tmp_path / "live").gradient_norms()
            assert dataset.to_table()["batch_idx"].to_pylist() == list(range(1, batch + 1))
    assert runs(tmp_path / "live").gradient_norms().count_rows() == 3


def test_a_resumed_run_has_the_rows_after_its_parquet_file(tmp_path: Path) -> None:
    """Rows of earlier attempts are in Parquet, rows of the current attempt in the journal beside it."""
    builder = RunBuilder(root=tmp_path / "run", formats=("parquet",))
    builder.write()
    row = {"batch_idx": 130, "epoch": 3, "lr_group_0": 0.1, "lr_group_1": 1.0}
    batch = pa.RecordBatch.from_pylist([row], schema=RATES.arrow_schema)
    writer = JournalWriter(builder.layout.journal("learning_rates"), RATES.arrow_schema, rows_before=12)
    writer.write(batch)
    writer.close()
    for batches in (
        runs(tmp_path / "run").learning_rates().to_table(),
        open_run(tmp_path / "run").arrow("learning_rates"),
    ):
        assert batches["batch_idx"].to_pylist() == list(range(10, 131, 10))


def test_columns_that_a_run_lacks_are_null(tmp_path: Path) -> None:
    """Missing columns are null, nan stays nan, and types are widened."""
    RunBuilder(root=tmp_path / "one", norms={10: {"overall": float("nan")}}).write()
    other = RunBuilder(root=tmp_path / "two").write()
    names = {"mlp_layer_3": "mlp_layer_6"}
    edit_parquet(other / "telemetry/gradient_norms.parquet", lambda rows: rows.rename_columns(names))
    rows = runs(tmp_path / "*").gradient_norms().to_table()
    assert rows.column_names[-2:] == ["mlp_layer_3", "mlp_layer_6"]
    nulls = rows.group_by("run").aggregate([("mlp_layer_3", "count"), ("mlp_layer_6", "count"), ("overall", "count")])
    assert sorted(nulls.to_pylist(), key=str) == sorted(
        (
            {"run": "one", "mlp_layer_3_count": 12, "mlp_layer_6_count": 0, "overall_count": 12},
            {"run": "two", "mlp_layer_3_count": 0, "mlp_layer_6_count": 12, "overall_count": 12},
        ),
        key=str,
    )
    assert np.isnan(rows["overall"].to_numpy()).sum() == 1


def test_only_the_runs_and_columns_asked_for_are_read(tmp_path: Path) -> None:
    """A damaged page fails only the query that needs it."""
    for name in ("one", "two"):
        RunBuilder(root=tmp_path / name, formats=("parquet",)).write()
    damage_column(tmp_path / "two/telemetry/gradient_norms.parquet", 2)
    norms = runs(tmp_path / "*").gradient_norms()
    assert norms.to_table(columns=["overall"], filter=ds.field("run") == "one").num_rows == 12
    assert norms.to_table(columns=["run", "mlp_head"]).num_rows == 24
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        norms.to_table(columns=["overall"])


def test_predictions_carry_run_and_epoch(tmp_path: Path) -> None:
    """A row for each run, epoch and image; ids are strings if those of any run are."""
    RunBuilder(root=tmp_path / "numbers").write()
    assert str(runs(tmp_path / "*").val_predictions().schema.field("image_id").type) == "int64"
    RunBuilder(root=tmp_path / "texts", image_ids=["a", "b"]).write()
    rows = frame(runs(tmp_path / "*").val_predictions().to_table())
    assert rows.groupby(["run", "epoch"]).size().to_dict() == {
        **{("numbers", epoch): 30 for epoch in range(3)},
        **{("texts", epoch): 2 for epoch in range(3)},
    }
    assert set(rows["image_id"]) == {*map(str, range(953_000, 953_030)), "a", "b"}
    assert runs(tmp_path / "*").val_predictions(name="ema").count_rows() == 0


def test_metrics_and_events(tmp_path: Path) -> None:
    """The tables that are only CSV; a run without them contributes no rows."""
    spike = Event(event="non_finite", severity="warning", message="m", batch_idx=10, batch_idx_end=10, epoch=0)
    RunBuilder(root=tmp_path / "one", events=[spike]).write()
    RunBuilder(root=tmp_path / "two", status="running").write()
    found = runs(tmp_path / "*")
    assert found.metrics().to_table()["run"].to_pylist() == ["one"] * 3
    assert found.events().to_table(columns=["run", "event"]).to_pylist() == [{"run": "one", "event": "non_finite"}]


def test_a_run_that_cannot_be_read_is_skipped_by_name(tmp_path: Path) -> None:
    """With a warning for each; the others are read."""
    for name in ("good", "bad", "lost"):
        RunBuilder(root=tmp_path / name).write()
    cut(tmp_path / "bad/telemetry/steps.parquet", 20)
    (tmp_path / "lost/telemetry/manifest.json").unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps = runs(f"{tmp_path}/*").steps()
    assert [str(one.message).split(":")[0] for one in caught] == ["Run 'bad' is skipped", "Run 'lost' is skipped"]
    assert set(steps.to_table()["run"].to_pylist()) == {"good"}


def test_a_link_out_of_a_run_is_not_followed(tmp_path: Path) -> None:
    """A run directory may come from others; the remaining runs are read."""
    for name in ("good", "evil"):
        RunBuilder(root=tmp_path / name).write()
    secret = tmp_path / "secret.csv"
    secret.write_text("s")
    (tmp_path / "evil/telemetry/more.csv").symlink_to(secret)
    with pytest.warns(UserWarning, match="Run 'evil' is skipped: .*link out of the run directory"):
        assert list(runs(f"{tmp_path}/*").runs) == ["good"]


def test_a_column_of_another_type_is_an_error_that_names_the_run(tmp_path: Path) -> None:
    """Numbers and texts cannot share a column, and a user's column `run` would hide the name of the run."""
    for name in ("one", "two"):
        RunBuilder(root=tmp_path / name).write()
    steps = tmp_path / "two/telemetry/steps.parquet"
    edit_parquet(steps, lambda rows: rows.set_column(4, "loss", rows["time_utc"]))
    with pytest.raises(DamagedFileError, match="run 'two': its types differ"):
        runs(tmp_path / "*").steps()
    edit_parquet(steps, lambda rows: rows.drop_columns(["loss"]).append_column("run", rows["epoch"]))
    with pytest.raises(DamagedFileError, match="run 'two' already has a column run"):
        runs(tmp_path / "*").steps()


def test_the_longer_csv_is_read_if_parquet_lost_rows(tmp_path: Path) -> None:
    """As `open_run` does: the manifest records that Parquet has fewer."""
    root = RunBuilder(root=tmp_path / "run").write()
    edit_parquet(root / "telemetry/gradient_norms.parquet", lambda rows: rows.slice(0, 4))
    edit_manifest(root, lambda manifest: manifest["attempts"][0]["rows"].update({"gradient_norms.parquet": 4}))
    assert runs(root).gradient_norms().count_rows() == 12


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("{0}/a/*", ["one", "two"]),
        ("{0}/*/one", ["a/one", "b/one"]),
        ("{0}/**", ["a/one", "a/two", "b/one"]),
        (["{0}/a/one", "{0}/b/one"], ["{0}/a/one", "{0}/b/one"]),
        (["{0}/a/one", "{0}/a/*"], ["one", "two"]),
        ("{0}/a/[ot]*", ["one", "two"]),
    ],
    ids=str,
)
def test_runs_are_named_by_the_part_from_the_first_wildcard_on(
    patterns: str | list[str], names: list[str], tmp_path: Path
) -> None:
    """By their whole paths if two of them would have the same name."""
    for name in ("a/one", "a/two", "b/one"):
        RunBuilder(root=tmp_path / name).write()
    (tmp_path / "a/notes").mkdir()
    given = [patterns] if isinstance(patterns, str) else patterns
    found = runs([pattern.format(tmp_path) for pattern in given])
    assert list(found.runs) == [name.format(tmp_path) for name in names]


def test_a_directory_named_like_a_pattern_is_not_a_pattern(tmp_path: Path) -> None:
    """`[1]` is valid in a name."""
    root = RunBuilder(root=tmp_path / "try [1]*").write()
    RunBuilder(root=tmp_path / "try 1").write()
    assert list(runs(root).runs) == ["try [1]*"]


def test_a_pattern_without_runs_is_an_error(tmp_path: Path) -> None:
    """An empty dataset could not be distinguished from runs without rows."""
    (tmp_path / "empty").mkdir()
    for patterns in ([f"{tmp_path}/*"], [tmp_path / "none", tmp_path / "empty"], []):
        with pytest.raises(NotARunError, match="no run found"):
            runs(patterns)


def test_an_unknown_table_lists_the_known_tables(tmp_path: Path) -> None:
    """The tables of all runs."""
    RunBuilder(root=tmp_path / "run").write()
    with pytest.raises(MisuseError, match="'weights'; known tables: gradient_norms, learning_rates, steps"):
        runs(tmp_path / "run").table("weights")


@pytest.mark.parametrize("formats", [("csv", "parquet"), ("csv",), ("parquet",)], ids=str)
@pytest.mark.parametrize("status", ["finished", "running"])
def test_columns_and_batches_can_be_selected(formats: tuple[str, ...], status: str, tmp_path: Path) -> None:
    """Both ends included, columns in the given order, values bit for bit."""
    root = RunBuilder(root=tmp_path / "run", formats=formats, status=status).write()  # type: ignore[arg-type]  # from a parameter
    run = open_run(root)
    whole = run.learning_rates()
    found = run.table("learning_rates", columns=["lr_group_1", "batch_idx"], batches=(30, 60))
    expected = whole.loc[whole["batch_idx"].between(30, 60), ["lr_group_1", "batch_idx"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert run.arrow("learning_rates", batches=(100, None))["batch_idx"].to_pylist() == [100, 110, 120]
    assert run.arrow("learning_rates").schema.names == list(RATES.column_names)


def test_an_unknown_column_lists_the_known_columns(tmp_path: Path) -> None:
    """In the package's own message, not Arrow's."""
    run = open_run(RunBuilder(root=tmp_path / "run").write())
    with pytest.raises(MisuseError, match=r"no column lr; its columns: batch_idx, epoch, lr_group_0, lr_group_1\."):
        run.arrow("learning_rates", columns=["lr"])


def test_a_damaged_page_is_a_damaged_file_error(tmp_path: Path) -> None:
    """Whether all rows are read or a selection."""
    root = RunBuilder(root=tmp_path / "run", formats=("parquet",)).write()
    damage_column(root / "telemetry/learning_rates.parquet", 2)
    for batches in (None, (10, 50)):
        with pytest.raises(DamagedFileError):
            open_run(root).arrow("learning_rates", batches=batches)


def test_the_public_names() -> None:
    """The documentation uses `ava_pipeline.runs`."""
    assert ava_pipeline.runs is runs
    assert ava_pipeline.Runs({}).runs == {}


def test_metrics_of_runs_that_log_other_names_are_one_dataset(tmp_path: Path) -> None:
    """A name that a run did not log is null in its rows, and so is the batch."""
    RunBuilder(root=tmp_path / "one").write()
    other = RunBuilder(root=tmp_path / "two").write()
    (other / "metrics.csv").write_text("epoch,batch_idx,top-5,srcc\n0,20,0.5,\n1,,nan,0.25\n")
    rows = runs(f"{tmp_path}/*").metrics().to_table()
    assert rows.column_names[:3] == ["run", "epoch", "train_loss"]
    found = rows_of(runs(f"{tmp_path}/*").metrics(), "two")
    assert found[["epoch", "batch_idx"]].fillna(-1).to_numpy().tolist() == [[0, 20], [1, -1]]
    assert (found["srcc"].isna().tolist(), found["emd_r1"].isna().tolist()) == ([True, False], [True, True])
    assert rows["top-5"].null_count == 3


def test_predictions_after_batches_are_marked_with_their_batch(tmp_path: Path) -> None:
    """A column that is there only if a run has such a file; it is null at the end of an epoch."""
    layout = RunLayout(RunBuilder(root=tmp_path / "one").write())
    RunBuilder(root=tmp_path / "two").write()
    assert "batch_idx" not in runs(f"{tmp_path}/*").val_predictions().schema.names
    write_parquet(layout.epoch_predictions(1, batch_idx=60), prediction_rows([1, 2, 3], seed=1))
    rows = runs(f"{tmp_path}/*").val_predictions().to_table()
    batches = rows.group_by(["run", "epoch", "batch_idx"]).aggregate([("image_id", "count")]).to_pylist()
    assert {"run": "one", "epoch": 1, "batch_idx": 60, "image_id_count": 3} in batches
    assert {"run": "one", "epoch": 1, "batch_idx": None, "image_id_count": 30} in batches
    assert {"run": "two", "epoch": 1, "batch_idx": None, "image_id_count": 30} in batches
    assert len(batches) == 7
