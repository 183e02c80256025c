"""Every snippet of docs/querying.md runs on a finished run, a crashed run, and a run with other columns."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ava_pipeline import cli
from tests.validate.building import RunBuilder
from tests.validate.damaging import cut, edit_lines, edit_parquet

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "querying.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with runs in outputs/ava."""
    runs = tmp_path / "outputs/ava"
    demo = RunBuilder(root=runs / "demo", batches=range(1, 121)).write()
    shutil.copy(ROOT / "configs/demo.yaml", demo / "config.yaml")
    crashed = RunBuilder(root=runs / "crashed", status="running", formats=("parquet",)).write()
    cut(crashed / "telemetry/gradient_norms.journal", 10)
    deep = RunBuilder(root=runs / "deep").write()
    names = {"mlp_layer_3": "mlp_layer_6"}
    edit_parquet(deep / "telemetry/gradient_norms.parquet", lambda rows: rows.rename_columns(names))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def library(snippet: str) -> str:
    """The library that a snippet uses."""
    return next((name for name in ("duckdb", "polars", "pandas") if f"import {name}" in snippet), "ava_pipeline")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=library)
def test_snippets(snippet: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As printed, after the first snippet, which opens the runs; each prints something."""
    pytest.importorskip(library(snippet))
    names: dict[str, Any] = {}
    for text in dict.fromkeys([SNIPPETS[0], snippet]):
        capsys.readouterr()
        exec(compile(text, "querying.md", "exec"), names)  # noqa: S102  # our own docs
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["duckdb", "polars", "pandas"])
def test_each_library_counts_the_rows_of_every_run(name: str, home: Path) -> None:
    """With the same result: the last frame of the crashed run is torn, and null is null in each library."""
    pytest.importorskip(name)
    from ava_pipeline import runs  # noqa: PLC0415  # after the library, as a user would

    norms = runs("outputs/ava/*").gradient_norms()
    counted = {"duckdb": with_duckdb, "polars": with_polars, "pandas": with_pandas}[name](norms)
    assert counted == {"crashed": (10, 10, 0), "deep": (12, 0, 12), "demo": (120, 120, 0)}


@pytest.mark.parametrize("name", ["duckdb", "polars", "pandas"])
def test_a_run_with_damage_found_during_a_query_is_skipped(
    name: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged CSV line neither fails the query nor ends the process, and the log names the run."""
    pytest.importorskip(name)
    from ava_pipeline import runs  # noqa: PLC0415  # after the library, as a user would

    broken = RunBuilder(root=home / "outputs/ava/broken", formats=("csv",)).write()
    edit_lines(broken / "telemetry/gradient_norms.csv", lambda lines: [*lines[:2], "oops,1,2", *lines[3:]])
    norms = runs("outputs/ava/*").gradient_norms()
    counted = {"duckdb": with_duckdb, "polars": with_polars, "pandas": with_pandas}[name](norms)
    assert set(counted) == {"crashed", "deep", "demo"}
    assert "Run 'broken' is skipped" in caplog.text


def with_duckdb(norms: Any) -> dict[str, tuple[int, int, int]]:
    """Count with SQL over a Python variable."""
    import duckdb  # noqa: PLC0415  # an optional dependency

    assert norms is not None
    found = duckdb.sql("SELECT run, count(*), count(mlp_layer_3), count(mlp_layer_6) FROM norms GROUP BY run")
    assert found is not None
    return {run: (rows, third, sixth) for run, rows, third, sixth in found.fetchall()}


def with_polars(norms: Any) -> dict[str, tuple[int, int, int]]:
    """Count with a lazy query."""
    import polars as pl  # noqa: PLC0415  # an optional dependency

    counts = (pl.len(), pl.col("mlp_layer_3").count(), pl.col("mlp_layer_6").count())
    found = pl.scan_pyarrow_dataset(norms).group_by("run").agg(*counts).collect()
    return {run: (rows, third, sixth) for run, rows, third, sixth in found.rows()}


def with_pandas(norms: Any) -> dict[str, tuple[int, int, int]]:
    """Count with an Arrow-backed frame."""
    import pandas as pd  # noqa: PLC0415  # an optional dependency

    grouped = norms.to_table().to_pandas(types_mapper=pd.ArrowDtype).groupby("run")
    columns = [grouped.size(), grouped["mlp_layer_3"].count(), grouped["mlp_layer_6"].count()]
    return {str(run): (int(columns[0][run]), int(columns[1][run]), int(columns[2][run])) for run in columns[0].index}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, home: Path) -> None:
    """They exit with 0."""
    program, *arguments = shlex.split(command)
    assert program == "ava-pipeline"
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
