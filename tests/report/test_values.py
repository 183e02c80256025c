"""The user's values on the page, and findings that lead to the figure in which they can be seen."""

from pathlib import Path
from typing import Any

import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.report.batch_plots import figures_by_batch
from ava_pipeline.report.figure import Figure
from ava_pipeline.report.run_data import read_run_data
from ava_pipeline.report.style import style_at
from ava_pipeline.report.text import findings_list
from tests.report.reported import INF, every_batch, faulty, healthy
from tests.validate.building import STEPS, Row, RunBuilder


def figures(*roots: Path) -> dict[str, Figure]:
    """Those over batches, by name."""
    return {one.name: one for one in figures_by_batch([read_run_data(root.name, RunLayout(root)) for root in roots])}


def bands(figure: Figure) -> list[dict[str, Any]]:
    """What marks findings."""
    return [shape for shape in figure.layout["shapes"] if shape["type"] == "rect"]


@pytest.fixture
def with_bad_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose loss is below 0, 0, and inf at batch 50."""
    of_loss = {10: -0.5, 11: 0.0, 50: INF}
    row = RunBuilder._row

    def changed(self: RunBuilder, table: Any, batch: int) -> Row:
        return row(self, table, batch) | ({"loss": of_loss.get(batch, 0.3)} if table is STEPS else {})

    monkeypatch.setattr(RunBuilder, "_row", changed)
    return RunBuilder(root=tmp_path / "run", batches=range(1, 121), attempts=every_batch()).write()


def test_values_are_drawn_as_they_are(with_bad_loss: Path) -> None:
    """Below 0 too; what was never measured has no part, what is not finite is marked."""
    found = figures(with_bad_loss)["values"]
    line, marked = found.traces
    assert {trace["name"] for trace in found.traces} == {"loss", "loss: not finite"}
    assert line["y"][9:11].tolist() == [-0.5, 0.0]
    assert marked["x"].tolist() == [50]
    assert found.layout["yaxis"]["type"] == "linear"


def test_a_finding_leads_to_the_figure_of_its_column(with_bad_loss: Path) -> None:
    """One of the loss to the values, where a band marks it, and not to the norms."""
    run = findings_list(read_run_data("run", RunLayout(with_bad_loss)))
    places = {one.finding.sign: one.place for one in run.findings if one.finding.column == "loss"}
    assert places["non-finite"] == "values"
    found = figures(with_bad_loss)
    assert [50, 50] in [[band["x0"], band["x1"]] for band in bands(found["values"])]
    assert not bands(found["norms"])


def test_a_head_that_is_inf_is_no_dead_backbone(tmp_path: Path) -> None:
    """Over inf the ratio would be 0; the figure has the bands of what was found of the two."""
    ratio = figures(faulty(tmp_path / "run"))["ratio"]
    marks = {trace["name"].split(": ")[1]: trace["x"].tolist() for trace in ratio.traces if ": " in trace["name"]}
    assert marks == {"not finite": [70]}
    assert [(band["x0"], band["x1"]) for band in bands(ratio)] == [(1, 60)]


def test_a_band_says_whose_finding_it_is(tmp_path: Path) -> None:
    """By its border, where runs lie over each other."""
    roots = healthy(tmp_path / "one"), faulty(tmp_path / "two")
    borders = {band["line"]["color"] for band in bands(figures(*roots)["norms"])}
    assert borders == {style_at(1).color}
