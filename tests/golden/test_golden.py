"""Runs that every schema version wrote stay valid, readable and recoverable."""

import shutil
from pathlib import Path

import pytest

from ava_pipeline import open_run
from ava_pipeline.contract.tables import SCHEMA_VERSION
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.recover import recover_run
from tests.golden.make import RUNS

FOLDER = Path(__file__).parent
GOLDEN = sorted(path for path in FOLDER.glob("v*/*") if path.is_dir())
_MAX_BYTES = 300_000

golden = pytest.mark.parametrize("run", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.name}")


def num_rows(run: Path) -> dict[str, int]:
    """Rows of every table that can be read, and of every file of predictions."""
    opened = open_run(run)
    tables = {name: len(opened.table(name)) for name in opened.manifest.tables}
    predicted = {path.name: len(opened.val_predictions(int(path.stem[-3:]))) for path in run.glob("predictions/val_*")}
    return {**tables, **predicted}


def errors(run: Path) -> list[str]:
    """Findings of validation, except infos such as that the run was killed."""
    return [str(one) for one in validate_run(run) if one.severity != "info"]


@golden
def test_an_older_run_validates(run: Path) -> None:
    """A run that was valid when it was written is still valid."""
    assert errors(run) == []


@golden
def test_an_older_run_is_read(run: Path) -> None:
    """Every table has all rows of its attempts that were not superseded, and the events can be read."""
    opened = open_run(run)
    opened.events()
    counted = opened.manifest.attempts
    for name, entry in opened.manifest.tables.items():
        kind = f"{name}.{entry.formats[-1]}"
        kept = sum(one.rows.get(kind, 0) - one.set_aside.get(kind, 0) for one in counted)
        # A killed run's manifest has not counted its last rows.
        assert len(opened.table(name)) == kept or opened.manifest.status == "running"
        assert len(opened.table(name)) > 0
        assert list(opened.table(name).columns) == list(entry.declaration.column_names)


@golden
def test_an_older_run_is_recovered(run: Path, tmp_path: Path) -> None:
    """On a copy: no row is lost, no journal is left, and the run is valid."""
    copy = shutil.copytree(run, tmp_path / "run")
    before = num_rows(copy)
    recover_run(copy)
    assert num_rows(copy) == before
    assert list(copy.rglob("*.journal")) == []
    assert errors(copy) == []


def test_the_current_version_has_its_runs() -> None:
    """A new schema version needs runs of its own."""
    names = {path.name for path in GOLDEN if path.parent.name == f"v{SCHEMA_VERSION}"}
    assert names == {make.__name__ for make in RUNS}
    assert sum(path.stat().st_size for path in FOLDER.rglob("v*/**/*") if path.is_file()) < _MAX_BYTES
