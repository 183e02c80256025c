"""The gradient norms of a run as a picture."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from typer.testing import CliRunner

from ava_pipeline import cli
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.report.picture import norms_figure
from ava_pipeline.report.run_data import read_run_data
from tests.report.reported import SPIKE, faulty, long
from tests.validate.building import NORMS


@pytest.fixture
def faulty_axes(tmp_path: Path) -> Axes:
    """The plot of a run with zeros, nulls, nan and inf."""
    return axes_of(faulty(tmp_path / "run"))


def axes_of(root: Path) -> Axes:
    """The plot of a run."""
    return norms_figure(read_run_data("run", RunLayout(root))).axes[0]


def names(axes: Axes) -> list[str]:
    """The texts of the legend."""
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_the_command_writes_a_picture(tmp_path: Path) -> None:
    """In the format of the file's ending; the output names the file."""
    root = faulty(tmp_path / "run")
    for ending in ("png", "svg"):
        path = tmp_path / f"norms.{ending}"
        found = CliRunner().invoke(cli.app, ["plot", str(root), "-o", str(path)])
        assert (found.exit_code, found.output) == (0, f"Picture: {path}\n")
    assert imread(tmp_path / "norms.png").shape[:2] == (540, 1200)
    assert "<svg" in (tmp_path / "norms.svg").read_text()


def test_values_that_cannot_be_drawn_are_marked(faulty_axes: Axes) -> None:
    """Crosses at the top are nan and inf, triangles at the bottom 0; nulls and missing rows break the line."""
    marks = {(line.get_marker(), int(batch)) for line in faulty_axes.lines for batch in np.ravel(line.get_xdata())}
    assert {("x", 70), *(("v", batch) for batch in range(62, 68))} <= marks
    assert {"nan or inf", "0"} <= set(names(faulty_axes))
    line = next(line for line in faulty_axes.lines if line.get_label() == "mlp_layer_0")
    batches, heights = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    for batch in (100, 110):  # the first batches after the gaps
        assert np.isnan(heights[batches == batch]).any()


def test_a_finding_of_one_batch_is_visible(faulty_axes: Axes) -> None:
    """The edge of its band is wider than a pixel, and the legend lists its severity once."""
    bands = {patch.get_x(): patch for patch in faulty_axes.patches if isinstance(patch, Rectangle)}
    assert bands.keys() == {1, 70, 80, 101}
    assert bands[80].get_width() == 0
    assert bands[80].get_linewidth() * 120 / 72 > 1
    assert to_rgba(bands[80].get_edgecolor())[3] == 1
    assert names(faulty_axes).count("finding: warning") == 1


def test_epochs_and_batches_are_named_in_full(tmp_path: Path) -> None:
    """Without a factor such as 1e6 beside the axis."""
    axes = axes_of(long(tmp_path / "run", 2_000_000))
    assert [text.get_text() for text in axes.texts][:2] == ["epoch 0", "epoch 1"]
    axes.figure.canvas.draw()
    assert "1,000,000" in [label.get_text() for label in axes.get_xticklabels()]


def test_the_range_of_a_long_run_contains_its_spike(tmp_path: Path) -> None:
    """The median line does not."""
    axes = axes_of(long(tmp_path / "run", 100_000))
    areas = [area for area in axes.collections if isinstance(area, PolyCollection)]
    assert max(np.max(path.vertices) for area in areas for path in area.get_paths()) == pytest.approx(SPIKE)
    assert (
        max(
            np.nanmax(np.asarray(line.get_ydata()))
            for line in axes.lines
            if str(line.get_label()) in NORMS.run_column_names
        )
        < SPIKE
    )
