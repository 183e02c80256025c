"""The page of two runs says where they part; the page of one, or of three, does not compare."""

from pathlib import Path
from typing import Any

import pytest

from ava_pipeline import write_report
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.report.page import render_contents
from ava_pipeline.report.run_data import read_run_data
from tests.compare.recorded_runs import trained

BATCHES = range(1, 61)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs that differ in their batches, with snapshots."""
    folder = tmp_path_factory.mktemp("runs")
    options: dict[str, Any] = {"track_weight_snapshots": True, "weight_snapshot_every_n": 30}
    names = ("first", "<b>second</b>")
    return {name: trained(folder / str(seed), BATCHES, seed=seed, **options) for seed, name in enumerate(names)}


def test_the_page_of_two_runs_compares_them(runs: dict[str, Path], tmp_path: Path) -> None:
    """Settings, weights by layer, and names that could be markup."""
    write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    section = page[page.index('id="parting"') :].partition("</section>")[0]
    assert "A is first, B is &lt;b&gt;second&lt;/b&gt;." in section
    assert "seed is 0 in A and 1 in B" in section
    assert "Weights at batch 60" in section
    assert "mlp_head.3.weight" in section


def test_other_pages_do_not(runs: dict[str, Path]) -> None:
    """One run has nothing to be compared with, and a live page would read both runs again and again."""
    first, second = (read_run_data(name, RunLayout(root)) for name, root in runs.items())
    assert 'id="parting"' in render_contents([first, second])
    assert 'id="parting"' not in render_contents([first])
    assert 'id="parting"' not in render_contents([first, second, first])
    assert 'id="parting"' not in render_contents([first, second], is_live=True)
