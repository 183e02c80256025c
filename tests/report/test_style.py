"""The styles by which runs and columns are distinguished."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ava_pipeline.report.figure import style_at
from tests.report.reported import crashed, faulty, healthy, report

_PAPERS = ("#ffffff", "#14171b")  # of page.css


def figures_of(page: Path) -> dict[str, Any]:
    """The specification of each figure for plotly, by name."""
    specs = re.findall(
        r'<figure id="([^"]+)".*?<script type="application/json">(.*?)</script>', page.read_text(), re.DOTALL
    )
    return {name: json.loads(spec) for name, spec in specs}


def colors_of(figure: Any) -> dict[str, set[str]]:
    """The colours of each run's lines and points."""
    colors: dict[str, set[str]] = {}
    for trace in figure["data"]:
        colors.setdefault(trace["legendgroup"], set()).add((trace.get("line") or trace["marker"])["color"])
    return colors


def test_a_run_has_one_color_on_the_whole_page(tmp_path: Path) -> None:
    """Also in plots without the first run, which crashed before its metrics were written."""
    for name, make in (("1", crashed), ("2", healthy), ("3", faulty)):
        make(tmp_path / name)
    found = figures_of(report(tmp_path / "r.html", *(tmp_path / name for name in "123")))
    assert "1" not in colors_of(found["metric-train_loss"])
    for name in ("norms", "ratio", "rates", "metric-train_loss", "metric-srcc", "predicted", "residuals"):
        for run, colors in colors_of(found[name]).items():
            assert colors == {style_at(int(run) - 1).color}, name


def test_more_runs_than_colors_have_other_dashes_and_symbols(tmp_path: Path) -> None:
    """Twelve runs have twelve styles in every plot."""
    healthy(tmp_path / "runs" / "0")
    for number in range(1, 12):
        shutil.copytree(tmp_path / "runs" / "0", tmp_path / "runs" / str(number))
    found = figures_of(report(tmp_path / "r.html", tmp_path / "runs" / "*"))
    for name in ("norms", "rates", "metric-srcc"):
        lines = [trace for trace in found[name]["data"] if trace.get("yaxis", "y") == "y"]
        styles = {(line["line"]["color"], line["line"]["dash"], line["marker"]["symbol"]) for line in lines}
        assert len(styles) == 12, name
    points = [trace["marker"] for trace in found["predicted"]["data"]]
    assert len({(marker["color"], marker["symbol"]) for marker in points}) == 12


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("paper", _PAPERS)
def test_colors_have_contrast_on_a_light_and_a_dark_page(place: int, paper: str) -> None:
    """At least 3 to 1, as WCAG 2.2, 1.4.11 requires of graphics."""
    darker, lighter = sorted(map(luminance, (style_at(place).color, paper)))
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def luminance(color: str) -> float:
    """Relative luminance. Source: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    shares = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else float(((share + 0.055) / 1.055) ** 2.4) for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
