"""The figures of weights, layers, held-out samples and labels: what they show, and that they stay small."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.report.batch_plots import figures_by_batch
from ava_pipeline.report.contents import findings_list
from ava_pipeline.report.figure import Figure
from ava_pipeline.report.layer_norms import LAYER_COLUMNS, MAX_COLUMNS, MAX_LAYERS, LayerNorms, layer_norms
from ava_pipeline.report.layer_plots import layer_figures
from ava_pipeline.report.live import LivePage
from ava_pipeline.report.run_data import RunData, read_run_data
from tests.report.reported import NAMES, every_batch, everything, report
from tests.validate.building import RunBuilder
from tests.validate.more_tables import labels, layers, pairs, scores, weights

NAN = float("nan")
BATCHES = tuple(range(10, 121, 10))
NEW = {"updates", "layers", "holdout", "holdout-scores", "labels", "label-scores"}
MOST_BYTES = 6_000_000


def figures(*roots: Path) -> dict[str, Figure]:
    """The figures over batches, by name."""
    runs = [read_run_data(root.name, RunLayout(root)) for root in roots]
    return {figure.name: figure for figure in figures_by_batch(runs)}


def test_tables_that_a_run_does_not_have_have_no_figures(tmp_path: Path) -> None:
    """Not even empty ones; the raw tables of weights and predictions are no figures either."""
    assert not NEW & set(figures(RunBuilder(root=tmp_path / "plain").write()))
    found = list(figures(everything(tmp_path / "all")))
    assert found == [
        "norms",
        "ratio",
        "updates",
        "layers",
        "rates",
        "values",
        "holdout",
        "labels",
        "table-weight_norms",
    ]


def test_a_page_of_everything_has_a_text_and_a_table_for_each_figure(tmp_path: Path) -> None:
    """Also the first rows of long tables, once."""
    for figure in figures(everything(tmp_path / "run")).values():
        assert figure.label.startswith(figure.title)
        assert figure.caption
        assert figure.table is not None
        assert figure.table.rows
    page = report(tmp_path / "r.html", tmp_path / "run").read_text()
    assert page.count("<summary>per_layer_stats</summary>") == 1
    assert page.count("<td>stem.weight</td>") == 3  # the figure's table, and two of the five first rows
    assert page.count("<summary>holdout_predictions</summary>") == 1


def test_an_update_ratio_names_the_batches_that_it_spans(tmp_path: Path) -> None:
    """In the hover text and in the caption; it is not divided by them, and the first row has none."""
    batches = (10, 20, 30, 50, 60)
    run = RunBuilder(root=tmp_path / "run", batches=batches, more=weights(batches, backbone=0.04, first=0.0)).write()
    found = figures(run)["updates"]
    lines = {trace["name"]: trace for trace in found.traces}
    backbone = lines["backbone_layer4"]
    assert backbone["x"][np.isfinite(backbone["y"])].tolist() == [20, 30, 50, 60]
    assert backbone["y"][np.isfinite(backbone["y"])] == pytest.approx([0.01] * 4)
    assert backbone["customdata"][np.isfinite(backbone["y"])].tolist() == [10, 10, 20, 10]
    assert "over %{customdata} batches" in backbone["hovertemplate"]
    assert "√n" in found.caption
    assert found.caption.endswith("Here n is 10 to 20, and 10 in most rows.")
    assert lines["mlp_layer_0: 0"]["x"].tolist() == [20, 30, 50, 60]


def test_a_slice_of_update_ratios_names_its_batches_too(tmp_path: Path) -> None:
    """Beside the range of its values."""
    batches = tuple(range(2, 30_002, 2))
    run = RunBuilder(root=tmp_path / "run", batches=batches, formats=("parquet",), more=weights(batches)).write()
    area, line = figures(run)["updates"].traces[:2]
    assert area["fill"] == "toself"
    assert len(line["x"]) < 5000
    assert set(line["customdata"][:, 2].tolist()) == {2}


def cells(root: Path, grad_norms: Floats, batches: tuple[int, ...] = BATCHES) -> Figure:
    """The heat map of gradient norms [batches, layers]; nan is null and -1 is nan."""
    run = RunBuilder(root=root, batches=batches, more=[layers(batches, grad_norms, NAMES)]).write()
    return figures(run)["layers"]


def test_small_zero_null_and_not_finite_are_four_things(tmp_path: Path) -> None:
    """In colour, on the colour bar and in the hover text; layers are in the model's order from the top."""
    norms = np.full((12, 4), 0.1)
    norms[:, 1] = 1e-30
    norms[2, 0], norms[3, 0], norms[4, 0] = 0.0, NAN, -1
    found = cells(tmp_path / "run", norms)
    (trace,) = found.traces
    assert trace["y"] == list(NAMES)
    assert found.layout["yaxis"]["autorange"] == "reversed"
    assert trace["customdata"][0][1:6] == [0.1, 0.0, None, "not finite", 0.1]
    heights = trace["z"]
    assert np.isnan(heights[0, 3])
    assert heights[0, 1] == pytest.approx(-1)
    assert heights[1, 0] == pytest.approx(-30)
    assert heights[0, 2] < -30 < -1 < heights[0, 4]
    assert (trace["zmin"] < heights[0, 2], heights[0, 4] < trace["zmax"]) == (True, True)
    assert {"0", "not finite"} < set(trace["colorbar"]["ticktext"])
    colors = dict(map(tuple, trace["colorscale"]))
    assert colors[0.0] == "#9a9a9a"
    assert colors[1.0] == "#d6336c"
    assert [share for share, _ in trace["colorscale"]] == sorted(share for share, _ in trace["colorscale"])


def test_each_column_is_drawn_at_its_batches(tmp_path: Path) -> None:
    """Plotly is given where columns begin and where the last one ends."""
    (trace,) = cells(tmp_path / "run", np.ones((4, 4)), (10, 20, 40, 50)).traces
    assert trace["x"] == [10, 20, 40, 50, 60]
    assert "0" not in trace["colorbar"]["ticktext"]


def parts(norms: Floats, size: int, names: tuple[str, ...] = NAMES) -> Iterator[pa.RecordBatch]:
    """Rows of per_layer_stats in parts of some size."""
    batches = range(1, len(norms) + 1)
    _, rows = layers(batches, norms, names)
    yield from rows.select(list(LAYER_COLUMNS)).combine_chunks().to_batches(max_chunksize=size)


@pytest.mark.parametrize("size", [1, 3, 64, 100_000])
def test_many_batches_share_a_column_by_their_geometric_mean(size: int) -> None:
    """The same whatever parts the rows come in; against NumPy."""
    norms = np.random.default_rng(1).lognormal(size=(1500, 4))
    norms[8:16, 0] = 0.0
    norms[17, 1] = -1
    norms[24:32, 2] = NAN
    norms[33, 3] = 0.0
    found = layer_norms(parts(norms, size))
    assert found is not None
    assert (found.batches_per_column, len(found.starts)) == (8, 188)
    assert found.starts[:3].tolist() == [1, 9, 17]
    assert found.last_batch == 1500
    got = found.norms()
    usual = np.exp(np.log(norms[40:48]).mean(axis=0))
    np.testing.assert_allclose(got[:, 5], usual, rtol=1e-6)
    assert got[0, 1] == 0
    assert np.isinf(got[1, 2])
    assert np.isnan(got[2, 3])
    positive = np.delete(norms[32:40, 3], 1)
    assert got[3, 4] == pytest.approx(np.exp(np.log(positive).mean()), rel=1e-6)
    np.testing.assert_allclose(got[:, -1], np.exp(np.log(norms[1496:]).mean(axis=0)), rtol=1e-6)


def test_reduced_columns_are_those_of_wider_ones() -> None:
    """As if so many batches had shared a column from the beginning."""
    norms = np.random.default_rng(2).lognormal(size=(200, 4))
    found = layer_norms(parts(norms, 1000))
    assert found is not None
    reduced = found.reduced(60)
    assert (reduced.batches_per_column, len(reduced.starts)) == (4, 50)
    expected = np.exp(np.log(norms).reshape(50, 4, 4).mean(axis=1)).T
    np.testing.assert_allclose(reduced.norms(), expected, rtol=1e-6)


def test_a_layer_that_comes_later_and_a_batch_that_goes_back() -> None:
    """The layer has no cells before; rows of an earlier batch than those before are left out."""
    _, first = layers([1, 2], np.ones((2, 2)), ["a", "b"])
    _, then = layers([3, 2], np.array([[2.0, 2.0, 4.0], [9.0, 9.0, 9.0]]), ["a", "b", "c"])
    both = [part for rows in (first, then) for part in rows.select(list(LAYER_COLUMNS)).to_batches()]
    found = layer_norms(both)
    assert found is not None
    assert found.layers == ["a", "b", "c"]
    assert found.starts.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found.norms(), [[1, 1, 2], [1, 1, 2], [NAN, NAN, 4]])


def test_without_gradients_there_is_no_heat_map(tmp_path: Path) -> None:
    """All norms are null with `track_gradients: false`."""
    run = RunBuilder(root=tmp_path / "run", more=[layers(BATCHES, np.full((12, 4), NAN), NAMES)]).write()
    assert "layers" not in figures(run)


def of_run(found: LayerNorms) -> RunData:
    """A run of which nothing else is known."""
    return RunData("run", RunLayout(Path("run")), layers=found)


def test_a_long_run_of_many_layers_takes_little_memory_and_a_small_figure() -> None:
    """161 layers over 10,000 steps, whose rows never exist together; a figure of less than a megabyte."""
    names = tuple(f"layer{number // 40}.{number}.weight" for number in range(161))

    def every_part() -> Iterator[pa.RecordBatch]:
        for first in range(1, 10_001, 100):
            _, rows = layers(range(first, first + 100), np.full((100, 161), 1e-3 * first), names)
            yield from rows.select(list(LAYER_COLUMNS)).to_batches()

    tracemalloc.start()
    found = layer_norms(every_part())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert peak < 30e6
    assert found.norms().shape[0] == 161
    assert MAX_COLUMNS / 2 <= found.norms().shape[1] <= MAX_COLUMNS
    (figure,) = layer_figures([of_run(found)])
    assert len(str(figure.traces[0]["customdata"])) + figure.traces[0]["z"].nbytes < 800_000
    assert figure.layout["yaxis"]["dtick"] == 1  # every name is shown
    many = [RunData(f"run-{number}", RunLayout(Path("run")), layers=found) for number in range(12)]
    assert sum(one.traces[0]["z"].size for one in layer_figures(many)) < 60_000


def test_a_file_of_unboundedly_many_names_is_cut_off() -> None:
    """And the caption says so."""
    names = tuple(f"layer.{number}" for number in range(MAX_LAYERS + 20))
    found = layer_norms(parts(np.ones((3, len(names))), 500, names))
    assert found is not None
    assert (len(found.layers), found.num_left_out) == (MAX_LAYERS, 20)
    (figure,) = layer_figures([of_run(found)])
    assert "there are 20 more" in figure.caption
    assert figure.layout["height"] < 3200


def test_names_that_are_alike_when_shortened_stay_apart(tmp_path: Path) -> None:
    """Plotly would put them into one row; and HTML in a name is shown as it is."""
    long = "a" * 80
    names = (f"{long}.weight", f"{long}.bias", "<b>x</b>", "y")
    run = RunBuilder(root=tmp_path / "run", more=[layers(BATCHES, np.ones((12, 4)), names)]).write()
    (trace,) = figures(run)["layers"].traces
    assert len(set(trace["y"])) == 4
    assert trace["y"][2] == "&lt;b&gt;x&lt;/b&gt;"


def test_held_out_samples_are_drawn_by_kind(tmp_path: Path) -> None:
    """Accuracy and confidence share the axis of shares; an error and a mean score have one each."""
    logits = np.zeros((12, 4, 2))
    logits[:, 0, 1] = 100.0
    logits[3, 1, 0] = NAN
    of_classes = RunBuilder(root=tmp_path / "classes", more=[pairs(BATCHES, logits)]).write()
    lines = {trace["name"]: trace for trace in figures(of_classes)["holdout"].traces}
    assert lines["accuracy"]["y"][0] == 0.25
    assert lines["confidence"]["y"][0] == pytest.approx((1 + 3 * 0.5) / 4)
    assert lines["accuracy: not finite"]["x"].tolist() == [40]
    of_scores = RunBuilder(root=tmp_path / "scores", more=[scores(BATCHES, np.full((12, 3), 4.5))]).write()
    found = figures(of_scores)
    assert "holdout" not in found
    axes = {trace["name"]: (trace["yaxis"], trace["y"][0]) for trace in found["holdout-scores"].traces}
    assert axes == {"mae": ("y", 0.5), "pred_mean": ("y2", 4.5)}


def test_labels_are_drawn_as_shares(tmp_path: Path) -> None:
    """In percent of the batch."""
    run = RunBuilder(root=tmp_path / "run", more=[labels(BATCHES, np.arange(12))]).write()
    lines = {trace["name"]: trace for trace in figures(run)["labels"].traces}
    assert lines["winner_1_pct"]["y"].tolist() == pytest.approx([100 * count / 32 for count in range(12)])
    assert set(lines) == {"winner_0_pct", "winner_1_pct"}


def test_a_finding_links_to_the_figure_of_its_subject(tmp_path: Path) -> None:
    """And to none if the page does not have it: such as that of norms, without gradients."""
    batches = tuple(range(1, 121))
    event = Event(event="misuse", severity="warning", message="x", batch_idx=1, batch_idx_end=1, epoch=0)
    run = RunBuilder(
        root=tmp_path / "run",
        batches=batches,
        without=["gradient_norms"],
        attempts=every_batch(),
        events=[event],
        more=[labels(batches, np.repeat([5, 27], 60))],
    ).write()
    listed = {one.finding.id: one.figure for one in findings_list(read_run_data("run", RunLayout(run))).findings}
    assert listed["label-bias"] == "labels"
    assert listed["misuse"] is None
    assert any(shape["type"] == "rect" for shape in figures(run)["labels"].layout["shapes"])


def test_several_runs_share_figures_and_have_a_heat_map_each(tmp_path: Path) -> None:
    """One of them records none of this."""
    roots = [everything(tmp_path / name) for name in ("one", "two")]
    found = figures(*roots, RunBuilder(root=tmp_path / "plain").write())
    assert found["layers-0"].title == "one: gradient norms by layer"
    assert {trace["name"] for trace in found["holdout"].traces} == {"one", "two"}
    page = report(tmp_path / "r.html", *roots, tmp_path / "plain").read_text()
    assert len(page) < MOST_BYTES


def test_a_live_page_of_a_running_run_shows_them(tmp_path: Path) -> None:
    """Rows that are still in journals, Parquet only."""
    batches = BATCHES
    more = [
        *weights(batches),
        layers(batches, np.ones((12, 4)), NAMES),
        pairs(batches, np.zeros((12, 3, 2))),
    ]
    run = RunBuilder(root=tmp_path / "run", status="running", formats=("parquet",), more=more).write()
    contents = LivePage({"run": RunLayout(run)}).contents()
    for name in ("updates", "layers", "holdout"):
        assert f'<figure id="{name}"' in contents


def test_a_damaged_long_table_is_a_problem_on_the_page(tmp_path: Path) -> None:
    """The rest is shown."""
    run = everything(tmp_path / "run")
    RunLayout(run).parquet("per_layer_stats").write_bytes(b"PAR1")
    data = read_run_data("run", RunLayout(run))
    assert any("per_layer_stats" in problem for problem in data.problems)
    assert data.layers is None
    assert data.holdout is not None
