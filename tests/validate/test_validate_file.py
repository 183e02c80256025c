"""A single file is validated alone: its table is recognized, its rows are checked, and no other file is read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ava_pipeline.contract.events import Event
from ava_pipeline.errors import MisuseError, NotARunError
from ava_pipeline.validate.validate import validate_file
from tests.validate.building import RunBuilder
from tests.validate.damaging import cut, edit_lines, set_cell, set_field

FILES = [
    *(f"telemetry/{table}.{suffix}" for table in ("gradient_norms", "learning_rates") for suffix in ("csv", "parquet")),
    "telemetry/steps.csv",
    "telemetry/events.csv",
    "predictions/val_epoch_001.parquet",
    "metrics.csv",
]


@pytest.fixture(scope="module")
def valid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a file of every format and table."""
    event = Event(event="gap", severity="warning", message="a, b", batch_idx=20, batch_idx_end=20, epoch=0)
    return RunBuilder(root=tmp_path_factory.mktemp("sound") / "run", events=[event]).write()


@pytest.fixture
def run(valid_run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(valid_run, tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_run_is_clean(name: str, valid_run: Path) -> None:
    """With the manifest beside it."""
    assert validate_file(valid_run / name) == []


@pytest.mark.parametrize("name", [name for name in FILES if "steps" not in name])
def test_a_file_without_its_run_is_recognized_by_its_columns(name: str, valid_run: Path, tmp_path: Path) -> None:
    """The file is copied to a name that matches no table."""
    path = Path(shutil.copy(valid_run / name, tmp_path / f"copy{Path(name).suffix}"))
    assert validate_file(path) == []
    shutil.copy(path, path.with_name(f"other{path.suffix}"))
    assert validate_file(path) == []


DAMAGES: list[tuple[str, Callable[[Path], object], str, int | None]] = [
    ("telemetry/gradient_norms.csv", lambda path: set_field(path, 3, "mlp_layer_0", "0.001"), "norms.head-sum", 3),
    ("telemetry/gradient_norms.parquet", lambda path: set_cell(path, 4, "backbone_layer4", 1e6), "norms.overall", 4),
    ("telemetry/learning_rates.csv", lambda path: set_field(path, 2, "lr_group_0", "nan"), "rates.finite", 2),
    ("telemetry/learning_rates.csv", lambda path: set_field(path, 5, "batch_idx", "7"), "rows.order", 5),
    ("telemetry/learning_rates.csv", lambda path: set_field(path, 5, "epoch", "x"), "values.dtype", 5),
    ("telemetry/steps.csv", lambda path: cut(path, 3), "files.torn-line", 12),
    ("telemetry/events.csv", lambda path: set_field(path, 1, "event", "surprise"), "values.choice", 1),
    ("telemetry/gradient_norms.parquet", lambda path: cut(path, 100), "files.unreadable", None),
    ("telemetry/gradient_norms.csv", lambda path: edit_lines(path, lambda lines: lines[1:]), "files.columns", None),
    ("predictions/val_epoch_001.parquet", lambda path: set_cell(path, 5, "pred_mean", 9.5), "predictions.mean", 5),
    ("metrics.csv", lambda path: set_field(path, 1, "emd_r1", "much"), "values.dtype", 1),
    ("metrics.csv", lambda path: set_field(path, 3, "epoch", "1"), "metrics.rows", 3),
]


@pytest.mark.parametrize(
    ("name", "damage", "rule", "row"), DAMAGES, ids=lambda value: value if "." in str(value) else ""
)
def test_damage_in_a_file_is_found(
    name: str, damage: Callable[[Path], object], rule: str, row: int | None, run: Path
) -> None:
    """By the rules for its rows; the finding names the file without a folder."""
    path = run / name
    damage(path)
    found = {(one.id, one.file, one.row) for one in validate_file(path)}
    assert found == {(rule, path.name, row)}


def test_other_files_are_not_read(run: Path) -> None:
    """Whether the other format holds the same rows is checked for a run only."""
    set_field(run / "telemetry/steps.csv", 3, "loss", "0.5")
    assert validate_file(run / "telemetry/steps.csv") == []


def test_a_wrong_column_name_is_a_finding(tmp_path: Path) -> None:
    """If no manifest declares the columns, they must still be valid column names."""
    path = tmp_path / "gradient_norms.csv"
    path.write_text("batch_idx,epoch,=overall\n1,0,2.5\n")
    assert [one.id for one in validate_file(path)] == ["files.columns"]


def test_other_and_missing_files_are_wrong_usage(tmp_path: Path) -> None:
    """A journal is read with its run, and a missing file not at all."""
    (tmp_path / "steps.journal").touch()
    with pytest.raises(MisuseError, match="its run"):
        validate_file(tmp_path / "steps.journal")
    with pytest.raises(NotARunError, match=r"steps\.csv does not exist"):
        validate_file(tmp_path / "steps.csv")
