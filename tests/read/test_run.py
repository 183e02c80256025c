"""Opening finished, live and crashed runs, and directories that are not runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ava_pipeline
from ava_pipeline import open_run
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Status
from ava_pipeline.contract.stored import store_journal
from ava_pipeline.errors import DamagedFileError, MisuseError, NotARunError
from ava_pipeline.report.run_data import read_run_data
from tests.scripts import run_script
from tests.validate.building import Format, Row, RunBuilder
from tests.validate.damaging import cut, edit_lines, set_field

FORMATS = [("csv", "parquet"), ("csv",), ("parquet",)]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_every_table_opens_in_any_format(formats: tuple[Format, ...], tmp_path: Path) -> None:
    """A user asks for a table and need not know its files."""
    run = open_run(RunBuilder(root=tmp_path / "run", formats=formats).write())
    norms = run.gradient_norms()
    assert norms["batch_idx"].tolist() == list(range(10, 121, 10))
    assert norms.dtypes.astype(str).to_dict() == {
        "batch_idx": "int64[pyarrow]",
        "epoch": "int64[pyarrow]",
        **dict.fromkeys(("overall", "backbone_layer4", "mlp_head", "mlp_layer_0", "mlp_layer_3"), "float[pyarrow]"),
    }
    assert run.learning_rates()["lr_group_1"].dtype == "double[pyarrow]"
    assert str(run.steps()["time_utc"].dtype) == "timestamp[us, tz=UTC][pyarrow]"
    pd.testing.assert_frame_equal(run.table("steps"), run.steps())


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_number_nan_and_null_stay_apart(formats: tuple[Format, ...], tmp_path: Path) -> None:
    """Measured, measured but not finite, and not measured stay distinct, in CSV too."""
    norms: dict[int, Row] = {
        10: {"overall": 0.1},
        20: {"overall": float("nan")},
        30: {"overall": float("inf")},
        40: {"overall": None},
    }
    overall = open_run(RunBuilder(root=tmp_path / "run", norms=norms, formats=formats).write()).gradient_norms()[
        "overall"
    ]
    assert overall.isna().tolist()[:4] == [False, False, False, True]
    assert overall.iloc[0] == np.float32(0.1)
    assert np.isnan(overall.iloc[1])
    assert np.isinf(overall.iloc[2])
    assert overall.iloc[3] is pd.NA


def test_csv_and_parquet_give_the_same_frame(tmp_path: Path) -> None:
    """Floats in CSV read back to the same bits."""
    both = open_run(RunBuilder(root=tmp_path / "both").write())
    text = open_run(RunBuilder(root=tmp_path / "text", formats=("csv",)).write())
    for table in ("gradient_norms", "learning_rates", "steps"):
        pd.testing.assert_frame_equal(both.table(table), text.table(table), check_exact=True)


def test_rows_in_the_journal_are_read(tmp_path: Path) -> None:
    """While a run is being written, and after a crash, most rows are not in a Parquet file yet."""
    root = RunBuilder(root=tmp_path / "run", status="running", formats=("parquet",)).write()
    assert len(open_run(root).gradient_norms()) == 12


def test_a_torn_frame_costs_its_own_rows_only(tmp_path: Path) -> None:
    """A kill during a write leaves an incomplete last frame."""
    root = RunBuilder(root=tmp_path / "run", status="running", formats=("parquet",)).write()
    cut(root / "telemetry/gradient_norms.journal", 10)
    assert len(open_run(root).gradient_norms()) == 10


def test_a_damaged_frame_warns(tmp_path: Path) -> None:
    """The warning is the finding that `validate` and `recover` print."""
    root = RunBuilder(root=tmp_path / "run", status="running", formats=("parquet",)).write()
    journal = root / "telemetry/gradient_norms.journal"
    data = bytearray(journal.read_bytes())
    data[data.find(b"AVAjrnR1") + 100] ^= 1
    journal.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum"):
        norms = open_run(root).gradient_norms()
    assert norms["batch_idx"].tolist() == list(range(60, 121, 10))


def test_the_longer_file_is_read(tmp_path: Path) -> None:
    """If a crash cost Parquet rows that the CSV file has, the CSV file is read."""
    root = RunBuilder(root=tmp_path / "run", status="running").write()
    cut(root / "telemetry/gradient_norms.journal", 10)
    assert len(open_run(root).gradient_norms()) == 12


def test_a_torn_last_csv_line_is_left_out(tmp_path: Path) -> None:
    """A line without a line feed is being written, and its last number may be incomplete."""
    root = RunBuilder(root=tmp_path / "run", status="running", formats=("csv",)).write()
    cut(root / "telemetry/gradient_norms.csv", 5)
    assert len(open_run(root).gradient_norms()) == 11


def test_each_call_reads_the_files_again(tmp_path: Path) -> None:
    """A run opened once shows rows that were written later."""
    builder = RunBuilder(root=tmp_path / "run", status="running", formats=("parquet",))
    run = open_run(builder.write())
    before = run.gradient_norms()
    store_journal(builder.layout.parquet("gradient_norms"), builder.layout.journal("gradient_norms"))
    pd.testing.assert_frame_equal(run.gradient_norms(), before)


def test_a_table_without_files_has_no_rows(tmp_path: Path) -> None:
    """Before the first flush, the manifest declares tables that have no file, and there are no events."""
    root = RunBuilder(root=tmp_path / "run", formats=("csv",)).write()
    (root / "telemetry/steps.csv").unlink()
    steps = open_run(root).steps()
    assert len(steps) == 0
    assert list(steps) == ["batch_idx", "epoch", "time_utc", "loss_scale", "loss"]
    assert len(open_run(root).events()) == 0


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.int64())], ids=str)
@pytest.mark.parametrize("column", ["batch_idx", "loss"])
def test_columns_of_another_type_are_refused(column: str, kind: pa.DataType, tmp_path: Path) -> None:
    """Another program saved the file: the column is named, and a report shows the rest of the run."""
    root = RunBuilder(root=tmp_path / "run").write()
    path = root / "telemetry/steps.parquet"
    rows = pq.read_table(path)
    changed = pa.array([None] * rows.num_rows, kind)
    pq.write_table(rows.set_column(rows.column_names.index(column), column, changed), path)
    with pytest.raises(DamagedFileError, match=rf"steps\.parquet: column {column}: expected .*64, got {str(kind)[:4]}"):
        open_run(root).steps()
    assert any(f"column {column}: expected" in trouble for trouble in read_run_data("run", RunLayout(root)).problems)


WITHOUT_PANDAS = """
import sys
from pathlib import Path

from ava_pipeline.read.run import open_run

run = open_run(Path(sys.argv[1]))
print(run.manifest.status, [run.arrow(name).num_rows for name in run.manifest.tables])
print(run.arrow("steps", columns=["loss", "batch_idx"], batches=(20, 40)).to_pylist()[0]["batch_idx"])
print("pandas" in sys.modules)
"""


@pytest.mark.parametrize("status", ["finished", "running"])
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_arrow_tables_are_read_without_pandas(formats: tuple[Format, ...], status: Status, tmp_path: Path) -> None:
    """Importing it takes longer than reading a run; only a frame needs it."""
    root = RunBuilder(root=tmp_path / "run", status=status, formats=formats).write()
    lines = run_script(WITHOUT_PANDAS, root, deadline_s=60).stdout.splitlines()
    assert lines == [f"{status} [12, 12, 12]", "20", "False"]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_columns_and_batches_are_selected(formats: tuple[Format, ...], tmp_path: Path) -> None:
    """Both ends are included, and columns come in the order asked for, whatever the format."""
    run = open_run(RunBuilder(root=tmp_path / "run", formats=formats).write())
    rows = run.arrow("steps", columns=["loss", "epoch"], batches=(20, 40))
    assert rows.column_names == ["loss", "epoch"]
    assert rows.equals(run.arrow("steps").slice(1, 3).select(["loss", "epoch"]))
    assert run.arrow("steps", batches=(115, None)).num_rows == 1
    assert run.arrow("steps", batches=(500, None)).num_rows == 0
    with pytest.raises(MisuseError, match="'steps' has no column lr; its columns: batch_idx"):
        run.arrow("steps", columns=["lr"])


def test_predictions_and_metrics_open(tmp_path: Path) -> None:
    """Predictions have one row per image, metrics one row per epoch."""
    run = open_run(RunBuilder(root=tmp_path / "run").write())
    assert len(run.val_predictions(2)) == 30
    assert run.metrics()["epoch"].tolist() == [0, 1, 2]
    assert run.manifest.attempt.counters.collected == 12


def test_metrics_have_the_columns_that_were_logged(tmp_path: Path) -> None:
    """Numbers are float64, and nan and null are kept apart; another program's file is refused with what to do."""
    root = RunBuilder(root=tmp_path / "run").write()
    (root / "metrics.csv").write_text("epoch,batch_idx,top-5,val/loss\n0,20,1,\n0,,nan,1e-05\n1,70,0.5,inf\n2,")
    frame = open_run(root).metrics()
    assert list(frame) == ["epoch", "batch_idx", "top-5", "val/loss"]
    assert [str(dtype.pyarrow_dtype) for dtype in frame.dtypes] == ["int64", "int64", "double", "double"]
    assert frame["batch_idx"].isna().tolist() == [False, True, False]
    assert frame["top-5"].isna().tolist() == [False, False, False]
    assert frame["val/loss"].tolist()[1:] == [1e-05, float("inf")]
    (root / "metrics.csv").write_text("step,loss\n1,0.5\n")
    with pytest.raises(DamagedFileError, match=r"metrics\.csv: expected the columns epoch, .* give it another name"):
        open_run(root).metrics()


def test_errors_name_the_alternatives(tmp_path: Path) -> None:
    """A missing table, epoch, set or file is an error that lists what the run has."""
    root = RunBuilder(root=tmp_path / "run").write()
    run = open_run(root)
    with pytest.raises(MisuseError, match="gradient_norms, learning_rates, steps"):
        run.table("weights")
    with pytest.raises(NotARunError, match="0, 1, 2"):
        run.val_predictions(3)
    with pytest.raises(NotARunError, match="'ema': none"):
        run.val_predictions(0, name="ema")
    (root / "metrics.csv").unlink()
    with pytest.raises(NotARunError, match="evaluate"):
        run.metrics()
    (root / "telemetry/manifest.json").unlink()
    with pytest.raises(NotARunError, match="recorded no telemetry"):
        run.steps()


def test_the_folder_of_a_logger_is_no_run(tmp_path: Path) -> None:
    """Its metrics.csv is not telemetry's: the error names the run that is in it."""
    (tmp_path / "metrics.csv").write_text("epoch,step,loss\n0,1,0.5\n")
    run = RunBuilder(root=tmp_path / "ava_run").write()
    with pytest.raises(NotARunError, match=f"open {run} instead"):
        open_run(tmp_path)


def test_a_directory_that_is_not_a_run_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """A path that does not exist, an empty directory, and the folder inside a run."""
    with pytest.raises(NotARunError, match="is not a directory"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(NotARunError, match=r"telemetry/manifest\.json"):
        open_run(tmp_path)
    root = RunBuilder(root=tmp_path / "run").write()
    with pytest.raises(NotARunError, match=f"open {root} instead"):
        open_run(root / "telemetry")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """The message names the file and, if possible, the row."""
    root = RunBuilder(root=tmp_path / "run", formats=("csv",)).write()
    run = open_run(root)
    set_field(root / "telemetry/steps.csv", 3, "loss", "much")
    with pytest.raises(DamagedFileError, match=r"steps\.csv.*Row #4.*much"):
        run.steps()
    edit_lines(root / "telemetry/gradient_norms.csv", lambda lines: ["a,b", *lines[1:]])
    with pytest.raises(DamagedFileError, match=r"gradient_norms\.csv.*'a,b'"):
        run.gradient_norms()
    cut(root / "predictions/val_epoch_000.parquet", 20)
    with pytest.raises(DamagedFileError, match=r"val_epoch_000\.parquet"):
        run.val_predictions(0)
    cut(root / "telemetry/manifest.json", 20)
    with pytest.raises(DamagedFileError, match=r"manifest\.json"):
        _ = run.manifest


def test_the_public_name_is_this_function() -> None:
    """`ava_pipeline.open_run` is what the documentation shows."""
    assert ava_pipeline.open_run is open_run
    assert ava_pipeline.Run is type(open_run_of_a_layout())


def open_run_of_a_layout() -> ava_pipeline.Run:
    """A run whose directory was not checked."""
    return ava_pipeline.Run(RunLayout(Path("nowhere")))
