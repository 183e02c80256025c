"""The user's values and tables on the page, and the figures that findings link to."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import TableEntry, read_manifest, write_manifest
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.report.batch_plots import figures_by_batch
from ava_pipeline.report.contents import findings_list
from ava_pipeline.report.figure import Figure, style_at
from ava_pipeline.report.run_data import read_run_data
from tests.report.reported import INF, every_batch, faulty, healthy, report
from tests.validate.building import STEPS, Row, RunBuilder


def figures(*roots: Path) -> dict[str, Figure]:
    """The figures over batches, by name."""
    return {
        figure.name: figure
        for figure in figures_by_batch([read_run_data(root.name, RunLayout(root)) for root in roots])
    }


def bands(figure: Figure) -> list[dict[str, Any]]:
    """The bands of findings."""
    return [shape for shape in figure.layout["shapes"] if shape["type"] == "rect"]


@pytest.fixture
def with_bad_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose loss is below 0, 0, and inf at batch 50."""
    losses = {10: -0.5, 11: 0.0, 50: INF}
    row = RunBuilder._row

    def changed(self: RunBuilder, table: Any, batch: int) -> Row:
        return row(self, table, batch) | ({"loss": losses.get(batch, 0.3)} if table is STEPS else {})

    monkeypatch.setattr(RunBuilder, "_row", changed)
    return RunBuilder(root=tmp_path / "run", batches=range(1, 121), attempts=every_batch()).write()


def test_values_are_drawn_as_they_are(with_bad_loss: Path) -> None:
    """Also below 0; a column without values has no subplot, and values that are not finite are marked."""
    found = figures(with_bad_loss)["values"]
    line, marked = found.traces
    assert {trace["name"] for trace in found.traces} == {"loss", "loss: not finite"}
    assert line["y"][9:11].tolist() == [-0.5, 0.0]
    assert marked["x"].tolist() == [50]
    assert found.layout["yaxis"]["type"] == "linear"


def test_a_finding_links_to_the_figure_of_its_column(with_bad_loss: Path) -> None:
    """A finding in the loss links to the values, where a band marks it, not to the norms."""
    run = findings_list(read_run_data("run", RunLayout(with_bad_loss)))
    linked = {listed.finding.id: listed.figure for listed in run.findings if listed.finding.column == "loss"}
    assert linked["non-finite"] == "values"
    found = figures(with_bad_loss)
    assert [50, 50] in [[band["x0"], band["x1"]] for band in bands(found["values"])]
    assert not bands(found["norms"])


def test_a_head_that_is_inf_is_not_a_dead_backbone(tmp_path: Path) -> None:
    """Divided by inf, the ratio would be 0. The figure has the bands of findings in these two columns."""
    ratio = figures(faulty(tmp_path / "run"))["ratio"]
    marks = {trace["name"].split(": ")[1]: trace["x"].tolist() for trace in ratio.traces if ": " in trace["name"]}
    assert marks == {"not finite": [70]}
    assert [(band["x0"], band["x1"]) for band in bands(ratio)] == [(1, 60)]


def test_the_border_of_a_band_has_the_color_of_its_run(tmp_path: Path) -> None:
    """If several runs share the plot."""
    roots = healthy(tmp_path / "one"), faulty(tmp_path / "two")
    borders = {band["line"]["color"] for band in bands(figures(*roots)["norms"])}
    assert borders == {style_at(1).color}


def add_table(root: Path, declaration: RunTable, columns: dict[str, Any]) -> None:
    """Add a table of a user's own measure to a run of 120 batches."""
    layout = RunLayout(root)
    keys: dict[str, Any] = {"batch_idx": list(range(1, 121)), "epoch": [batch // 40 for batch in range(120)]}
    name = declaration.table.name
    write_parquet(layout.parquet(name), pa.table(keys | columns, schema=declaration.arrow_schema))
    manifest = read_manifest(layout.manifest)
    tables = manifest.tables | {name: TableEntry(declaration=declaration, formats=("parquet",))}
    write_manifest(layout.manifest, manifest.model_copy(update={"tables": tables}))


def test_tables_of_own_measures_are_drawn(tmp_path: Path) -> None:
    """After the built-in figures: declared columns in a subplot each, columns named by the run on shared axes."""
    root = healthy(tmp_path / "run")
    keys = STEPS.table.columns[:2]
    share, sharpness = (
        Column(name=name, dtype="float32", description=name, nullable=True) for name in ("dead_share", "sharpness")
    )
    activations = Table(name="activations", description="Activations of the head.", columns=(*keys, share, sharpness))
    add_table(root, RunTable.of(activations), {"dead_share": [0.5] * 120, "sharpness": [-2.0, *[1.0] * 119]})
    group = Column(name="<group>", dtype="float32", description="Norm.", nullable=True)
    weights = Table(name="weight_scales", description="Norms of the weights.", columns=keys, run_columns=group)
    add_table(root, RunTable.of(weights, ("head", "tail")), {"head": [1.0] * 120, "tail": [2.0] * 120})

    found = figures(root)
    assert list(found) == ["norms", "ratio", "rates", "values", "table-activations", "table-weight_scales"]
    own = found["table-activations"]
    assert (own.title, own.caption) == ("activations", "Activations of the head.")
    assert {trace["name"]: trace["yaxis"] for trace in own.traces} == {"dead_share": "y", "sharpness": "y2"}
    assert own.traces[1]["y"][0] == -2.0
    assert {trace["yaxis"] for trace in found["table-weight_scales"].traces} == {"y"}
    assert '<figure id="table-activations"' in report(tmp_path / "r.html", root).read_text()


def test_a_table_without_measured_floats_has_no_figure(tmp_path: Path) -> None:
    """A plot needs a number; the first rows are in the page's tables all the same."""
    root = healthy(tmp_path / "run")
    keys = STEPS.table.columns[:2]
    empty_column = Column(name="value", dtype="float64", description="Value.", nullable=True)
    table = Table(name="sparse", description="Nothing was measured.", columns=(*keys, empty_column))
    add_table(root, RunTable.of(table), {"value": [None] * 120})
    assert "table-sparse" not in figures(root)
    assert "<summary>sparse</summary>" in report(tmp_path / "r.html", root).read_text()
