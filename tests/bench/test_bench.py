"""The bench command and every benchmark run at a tiny size; timings are not checked here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ava_pipeline import open_run
from ava_pipeline.bench.options import BenchContext, Options
from ava_pipeline.bench.peers import PEERS, Compared, Ours, Peer, _compared, compare
from ava_pipeline.bench.report import Report, print_report
from ava_pipeline.bench.results import Estimate, Result, Target, median, ratio
from ava_pipeline.bench.training import share
from ava_pipeline.bench.writing import TABLES, WrittenRun
from ava_pipeline.collect.measures import DEFAULT_MEASURES
from ava_pipeline.validate.validate import validate_run

ROOT = Path(__file__).parents[2]
TINY = Options(image_size=32, batch_size=2, steps=4, rows=1_000)
TINY_WORDS = ["--image-size", "32", "--batch-size", "2", "--steps", "4", "--rows", "1000"]


def run(*arguments: str | Path) -> str:
    """Run a Python module at a tiny size and return its output.

    The variables of pytest-xdist are removed, because pytest-benchmark does not measure under it.
    """
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=alone | {"AVA_BENCH_SIZE": "tiny", "OMP_NUM_THREADS": "1"},  # faster beside other tests
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Absent(Ours):
    """A peer that is not installed."""

    title = "norms of a missing package"
    packages = ("no_such_package_of_norms",)


def test_every_benchmark_file_runs(tmp_path: Path) -> None:
    """Gates are not checked at this size."""
    found = tmp_path / "pieces.json"
    run("pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "--benchmark-json", found)
    ran = {one["fullname"].partition("::")[0] for one in json.loads(found.read_text())["benchmarks"]}
    assert ran == {str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").glob("test_*.py")}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON that a tiny bench wrote, with its output as `printed`."""
    folder = tmp_path_factory.mktemp("bench")
    output: list[str | Path] = ["--every", "1", "2", "--json", folder / "made" / "b.json", "--plot", folder / "b.png"]
    printed = run("ava_pipeline.bench", *TINY_WORDS, *output)
    assert (folder / "b.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((folder / "made" / "b.json").read_text())
    return found | {"printed": printed}


def test_a_bench_records_where_it_ran_and_how_to_repeat_it(result: dict[str, Any]) -> None:
    """Machine, versions, commit and command."""
    assert result["command"].startswith("python -m ava_pipeline.bench --model resnet18 ")
    assert "--every 1 2 --steps 4 --rows 1000" in result["command"]
    assert "CPU" in result["machine"]
    assert {"python", "torch", "pyarrow"} <= result["versions"].keys()
    assert result["command"] in result["printed"]


def test_a_benchs_figures_make_sense(result: dict[str, Any]) -> None:
    """Each exists, is finite, lies inside its interval, and is positive unless it is a difference."""
    figures = {one["name"]: one for one in result["figures"]}
    assert {"share_every_1", "added_every_2", "step_collected_p99", "step_not_collected_p50"} <= figures.keys()
    assert {"step_of_total_norm", "step_of_read", "step_and_clip_of_clip", "step_without_pass"} <= figures.keys()
    assert {"writer_steps_per_s", "memory_growth", "lag_p99", "start_up", "close", "import"} <= figures.keys()
    for name, one in figures.items():
        assert one["low"] <= one["value"] <= one["high"], name
        assert np.isfinite(one["value"]), name
        assert one["value"] > 0 or name.startswith(("added_", "step_without", "step_minus", "memory_", "import")), name
    assert figures["memory_growth"]["raw"]["num_steps"] == TINY.rows


def test_a_bench_counts_what_became_of_its_rows(result: dict[str, Any]) -> None:
    """Three warm-up steps and four more: seven rows with n=1, three with n=2, all of them written."""
    assert [one["collected"] for one in result["stats"]] == [7, 3]
    assert all(one["written"] == one["collected"] for one in result["stats"])


def test_a_missing_peer_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    """The table says what to install."""
    context = BenchContext(TINY, tmp_path, lambda num_rounds, _: range(num_rounds))
    compared, results = compare(context, (Absent,))
    ours, absent = compared
    assert ours.record_ms is not None
    assert absent.record_ms is None
    assert not results
    console = Console(record=True, width=200)
    print_report(Report(options=TINY, machine="", commit=None, results=[], compared=compared, stats=[]), console)
    assert "not installed (no_such_package_of_norms): pip install 'ava-pipeline[peers]'" in console.export_text()


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_a_peer_that_is_installed_is_measured(peer: type[Peer], tmp_path: Path) -> None:
    """The collector is compared with it if it records the same columns."""
    if peer.missing():
        pytest.skip(f"{peer.title}: {peer.missing()}")
    context = BenchContext(TINY, tmp_path, lambda num_rounds, _: range(num_rounds))
    compared, results = compare(context, (peer,))
    assert [one.missing for one in compared] == [None, None]
    assert bool(results) == peer.has_same_columns


def test_the_writer_is_fed_rows_as_a_run_has_them(tmp_path: Path) -> None:
    """The table of every measure with all of its columns, no column empty, and rows that validation accepts."""
    with WrittenRun(tmp_path) as writer:
        writer.offer(range(1, 301))
    assert [one.table for one in TABLES] == [measure.table for measure in DEFAULT_MEASURES]
    written = open_run(tmp_path)
    for frame in (written.gradient_norms(), written.learning_rates(), written.steps()):
        assert len(frame) == 300
        assert frame.notna().all(axis=None)
    assert not validate_run(tmp_path)


def test_spacings_are_given_in_one_go_or_one_by_one() -> None:
    """Other values are refused."""
    refused = subprocess.run(
        [sys.executable, "-m", "ava_pipeline.bench", "5"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert refused.returncode == 2
    assert "--every 1 10" in refused.stderr


def test_a_target_is_a_most_or_a_least() -> None:
    """A figure without a target is informational."""
    assert Target(2.0).is_reached(2.0)
    assert not Target(2.0).is_reached(2.1)
    assert not Target(2.0, at_least=True).is_reached(1.9)
    assert Result(name="a", title="A", unit="s", estimate=Estimate.exactly(1.0)).is_reached is None


def test_intervals_hold_the_truth() -> None:
    """For samples whose median and ratio are known."""
    drawn = np.random.default_rng(0).normal(10.0, 1.0, 400)
    assert median(drawn).low < 10.0 < median(drawn).high
    assert ratio(3 * drawn, drawn) == pytest.approx((3.0, 3.0, 3.0))
    assert median(np.ones(5)) == Estimate.exactly(1.0)


@pytest.mark.parametrize(("every", "percent"), [(1, 5.0), (10, 0.59)])
def test_the_share_of_step_is_of_medians(every: int, percent: float) -> None:
    """(collected + (n - 1) × not collected) / (n × training step); single slow calls do not change it."""
    spread = np.random.default_rng(0).normal(1.0, 0.01, 100)
    spread[:5] = 1000.0
    found = share(5.0 * spread[:40], 0.1 * spread[: 60 if every > 1 else 0], 100.0 * spread, every=every).times(100)
    assert found.value == pytest.approx(percent, rel=0.01)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.05 * percent


def test_one_collected_call_has_a_share_too() -> None:
    """A short bench with few collected steps still reports a share."""
    found = share(np.array([5.0]), np.array([0.1, 0.1]), np.array([100.0, 110.0, 90.0]), every=10)
    assert found.value == pytest.approx(5.9 / 1000)


def test_a_peer_that_was_measured_by_itself_is_drawn_by_itself() -> None:
    """Its rounds are resampled apart from ours: the ratio of equal samples is known to some percent only."""
    drawn = np.random.default_rng(0).normal(10.0, 1.0, 400)
    times_ours = _compared(Absent, drawn, drawn).times_ours
    assert times_ours is not None
    assert times_ours.value == 1.0
    assert times_ours.low < 0.995
    assert times_ours.high > 1.005
    assert _compared(Ours, drawn, drawn).times_ours == Estimate.exactly(1.0)


def test_json_of_a_peer_that_was_not_measured_is_whole() -> None:
    """Its missing figures are null."""
    assert Compared(title="x", has_same_columns=False, missing="m").to_json()["record_ms"] is None
