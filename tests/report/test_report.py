"""Reports as files: their contents, their paths, and the messages if one cannot be written."""

import base64
import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ava_pipeline import cli
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, read_manifest, utc_now, write_manifest
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.errors import ConfigError, NotARunError
from ava_pipeline.report.live import HOST, LivePage, server_of
from ava_pipeline.report.page import write_report
from ava_pipeline.train.run_dir import start_over
from ava_pipeline.validate.validate import validate_run
from tests.report.reported import SPIKE, SPIKE_AT, crashed, empty, every_batch, faulty, healthy, long, report
from tests.validate.building import NOW, RunBuilder, prediction_rows

MOST_BYTES = 6_000_000


def specs(page: str) -> dict[str, Any]:
    """The specification of each figure for plotly, by name."""
    figures = re.findall(r'<figure id="([^"]+)".*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(spec) for name, spec in figures}


def numbers(packed: Any) -> np.ndarray:
    """An array from plotly's packed form."""
    return (
        np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"])
        if isinstance(packed, dict)
        else np.asarray(packed)
    )


def run_command(arguments: list[str]) -> tuple[int, str]:
    """Run a command and return its exit status and output."""
    result = CliRunner().invoke(cli.app, arguments)
    return result.exit_code, result.output


def test_a_page_of_a_long_run_is_small_and_keeps_its_spike(tmp_path: Path) -> None:
    """One value among a hundred thousand, at its batch; and the page loads nothing from elsewhere."""
    page = report(tmp_path / "r.html", long(tmp_path / "run", 100_000)).read_text()
    assert len(page.encode()) < MOST_BYTES
    area, line = specs(page)["norms"]["data"][:2]
    heights, batches = numbers(area["y"]), numbers(area["x"])
    assert len(heights) < 5000
    assert np.nanmax(heights) == pytest.approx(SPIKE)
    assert batches[np.nanargmax(heights)] == SPIKE_AT % 100_000 + 1
    assert (area["fill"], area["name"], line["name"]) == ("toself", "overall", "overall")
    assert np.nanmax(numbers(line["y"])) < 10
    assert not re.findall(r'<(?:script|img|iframe)[^>]*\ssrc=|<link[^>]*href="(?!data:)', page)


def test_many_long_runs_share_one_small_page(tmp_path: Path) -> None:
    """Each of them is drawn with fewer points."""
    long(tmp_path / "runs" / "run", 20_000)
    for number in range(11):
        shutil.copytree(tmp_path / "runs" / "run", tmp_path / "runs" / f"run-{number}")
    assert report(tmp_path / "r.html", tmp_path / "runs" / "*").stat().st_size < MOST_BYTES


def test_gaps_nulls_nan_inf_and_zeros_are_distinguished(tmp_path: Path) -> None:
    """Gaps and nulls break the line; nan, inf and 0, which a logarithmic scale cannot show, are marked."""
    traces = specs(report(tmp_path / "r.html", faulty(tmp_path / "run")).read_text())["norms"]["data"]
    named = {trace["name"]: trace for trace in traces}
    assert numbers(named["mlp_head: not finite"]["x"]).tolist() == [70]
    assert named["mlp_head: not finite"]["text"] == ["inf"]
    assert numbers(named["mlp_layer_3: 0"]["x"]).tolist() == list(range(62, 68))
    line = numbers(named["backbone_layer4"]["y"])
    assert np.isnan(line[numbers(named["backbone_layer4"]["x"]) == 110]).any()
    assert not np.isin(
        numbers(named["mlp_layer_0"]["x"])[~np.isnan(numbers(named["mlp_layer_0"]["y"]))], range(90, 100)
    ).any()


def test_tables_and_facts_are_shown_and_stay_short(tmp_path: Path) -> None:
    """The first rows of each table and of the predictions; a fact of megabytes is shortened."""
    root = healthy(tmp_path / "run")
    manifest = read_manifest(RunLayout(root).manifest)
    manifest.run_info["notes"] = "long " * 1_000_000
    write_manifest(RunLayout(root).manifest, manifest)
    page = report(tmp_path / "r.html", root).read_text()
    for name in ("gradient_norms", "learning_rates", "steps", "events", "val_epoch_002.parquet"):
        assert f"<summary>{name}</summary>" in page
    assert "<td>953000</td>" in page
    assert "<dt>notes</dt><dd>long long" in page
    assert len(page) < MOST_BYTES


def test_a_killed_run_is_killed_in_all_places(tmp_path: Path) -> None:
    """Also among the facts of the run and of its last attempt; and the page names its time."""
    page = report(tmp_path / "r.html", crashed(tmp_path / "run")).read_text()
    assert '<span class="badge killed">' in page
    assert "<dt>status</dt><dd>killed</dd>" in page
    assert "<dt>attempt 1: status</dt><dd>killed</dd>" in page
    assert re.search(r"As of 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\.", page)


def test_every_metric_that_a_loop_logs_is_drawn(tmp_path: Path) -> None:
    """Over epochs, or over batches where it was measured after single ones; whether less is better may be unknown."""
    root = healthy(tmp_path / "run")
    rows = ("0,20,0.5,,", "0,,0.25,1,", "1,70,0.125,,", "2,,inf,3,", "3,,0.0625,,")
    (root / "metrics.csv").write_text("\n".join(["epoch,batch_idx,val/loss,top-5,never", *rows]) + "\n")
    page = report(tmp_path / "r.html", root).read_text()
    figures = {name: spec["data"][0] for name, spec in specs(page).items() if name.startswith("metric-")}
    assert list(figures) == ["metric-val/loss", "metric-top-5", "metric-by-batch-val/loss"]
    assert numbers(figures["metric-val/loss"]["x"]).tolist() == [0, 2, 3]
    assert numbers(figures["metric-by-batch-val/loss"]["x"]).tolist() == [20, 70]
    assert numbers(figures["metric-by-batch-val/loss"]["y"]).tolist() == [0.5, 0.125]
    assert ">top-5</h3>" in page
    assert ">val/loss, by batch</h3>" in page
    assert "run: 0.5 in epoch 0, batch 20, 0.125 in epoch 1, batch 70." in page


def test_the_latest_predictions_may_be_those_after_a_batch(tmp_path: Path) -> None:
    """The page says so; and without metrics.csv, the metrics of predictions are drawn over epochs and over batches."""
    root = healthy(tmp_path / "run")
    write_parquet(RunLayout(root).epoch_predictions(3, batch_idx=125), prediction_rows([1, 2, 3], seed=1))
    (root / "metrics.csv").unlink()
    page = report(tmp_path / "r.html", root).read_text()
    assert "Validation images of epoch 3, batch 125, the last with predictions." in page
    found = specs(page)
    assert numbers(found["metric-emd_r1"]["data"][0]["x"]).tolist() == [0, 1, 2]
    assert numbers(found["metric-by-batch-emd_r1"]["data"][0]["x"]).tolist() == [125]


def test_several_runs_share_the_plots(tmp_path: Path) -> None:
    """Each run has a colour, each group a subplot."""
    healthy(tmp_path / "one")
    faulty(tmp_path / "two")
    norms = specs(report(tmp_path / "r.html", tmp_path / "*").read_text())["norms"]
    assert {trace["name"] for trace in norms["data"]} >= {"one", "two"}
    assert {trace["yaxis"] for trace in norms["data"]} == {"y", "y2", "y3", "y4", "y5"}


@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
def test_write_report_takes_directories_patterns_and_names(as_text: bool, tmp_path: Path) -> None:  # noqa: FBT001  # a parameter
    """One run, a pattern, several of either, or run directories by the names to show."""
    one, two = (healthy(tmp_path / f"runs/{name}") for name in ("one", "two"))
    page: Any = str(tmp_path / "r.html") if as_text else tmp_path / "r.html"
    given: Any
    for given, title in (
        (str(one) if as_text else one, "one"),
        (f"{tmp_path}/runs/*", "one, two"),
        ([two, f"{tmp_path}/runs/o*"], "two, one"),
        ({"mine": str(one) if as_text else one}, "mine"),
    ):
        write_report(given, page)
        assert f"<title>{title} · ava_pipeline</title>" in (tmp_path / "r.html").read_text()
    with pytest.raises(NotARunError, match="runs/none"):
        write_report(tmp_path / "runs/none", page)


def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    """Only the figures of that file are missing."""
    root = healthy(tmp_path / "run")
    RunLayout(root).parquet("learning_rates").write_bytes(b"PAR1 no more")
    page = report(tmp_path / "r.html", root).read_text()
    assert "learning_rates.parquet cannot be read" in page
    assert {"norms", "predicted", "metric-srcc"} <= set(specs(page))


def test_a_run_that_lost_its_manifest_still_shows_its_predictions(tmp_path: Path) -> None:
    """And reports the missing manifest."""
    root = healthy(tmp_path / "run")
    RunLayout(root).manifest.unlink()
    page = report(tmp_path / "r.html", root).read_text()
    assert "manifest.json does not exist" in page
    assert "predicted" in specs(page)


def test_the_page_in_a_run_directory_is_not_a_violation(tmp_path: Path) -> None:
    """The command prints its path; a training that starts over moves the page to superseded/."""
    root = healthy(tmp_path / "run")
    before = list(validate_run(root))
    status, output = run_command(["report", str(root)])
    assert (status, output) == (0, f"Report: {root / 'report.html'}\n")
    assert list(validate_run(root)) == before
    start_over(RunLayout(root), "")
    assert (root / "superseded/attempt-1/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report", "{}/nothing"], "no run found"),
        (["report", "{}/one", "{}/two"], "give it with -o"),
        (["report", "{}/one", "-o", "{}"], "is a folder"),
        (["report", "{}/one", "-o", "{}/one/config.yaml/r.html"], "cannot be written"),
        (["report", "{}/one", "--live", "0", "-o", "{}/r.html"], "leave out --output"),
        (["plot", "{}/nothing", "-o", "{}/n.png"], "is not a directory"),
        (["plot", "{}/one", "-o", "{}/n.gif"], "expected a name that ends in .png, .svg"),
        (["plot", "{}/none", "-o", "{}/n.png"], "has no rows of gradient norms to draw yet"),
    ],
)
def test_wrong_usage_is_named(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one sentence, with status 2; nothing is written."""
    for name in ("one", "two"):
        healthy(tmp_path / name)
    (tmp_path / "one/config.yaml").write_text("")
    empty(tmp_path / "none")
    monkeypatch.setattr(sys, "argv", ["ava-pipeline", *(argument.format(tmp_path) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not [*tmp_path.rglob("*.html"), *tmp_path.rglob("n.*")]


@pytest.mark.parametrize(
    ("command", "library", "extra"), [("report", "plotly", "report"), ("plot", "matplotlib", "plot")]
)
def test_a_missing_extra_is_named(
    command: str, library: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with the command that installs it."""
    monkeypatch.setitem(sys.modules, library, None)
    result = CliRunner().invoke(cli.app, [command, str(healthy(tmp_path / "run"))])
    assert isinstance(result.exception, ConfigError)
    assert f"{library}" in str(result.exception)
    assert f"pip install 'ava-pipeline[{extra}]'" in str(result.exception)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a live page, which is served to this machine only."""
    root = RunBuilder(root=tmp_path / "run", status="running", attempts=every_batch()).write()
    with server_of(LivePage({"run": RunLayout(root)}), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert server.server_address[0] == "127.0.0.1"
        yield server.server_port
        server.shutdown()
        thread.join()


def request(port: int, path: str, **headers: str) -> tuple[int, str, str | None]:
    """Request a path, and return the status, the body and the tag of the response."""
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    status, body, tag = response.status, response.read().decode(), response.headers["ETag"]
    connection.close()
    return status, body, tag


def test_a_live_page_is_for_this_machine_only(port: int, tmp_path: Path) -> None:
    """Foreign host names that resolve to this machine are refused, and no file can be requested."""
    assert request(port, "/")[0] == 200
    assert request(port, "/", Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", HOST, f"{HOST}:{port + 1}", ""):
        status, text, _ = request(port, "/contents", Host=host)
        assert (status, "run" in text) == (421, False)
    for path in ("/../../../etc/passwd", f"/{tmp_path}/run/metrics.csv", "//etc/passwd", "/contents/../..", "/%2e%2e/"):
        assert request(port, path)[0] == 404


def test_a_live_page_is_sent_again_only_after_a_change(port: int) -> None:
    """The browser requests it every two seconds."""
    status, text, tag = request(port, "/contents")
    assert (status, "figure" in text) == (200, True)
    assert request(port, "/contents", **{"If-None-Match": str(tag)})[:2] == (304, "")


def test_a_live_page_shows_a_change_right_after_it_started(tmp_path: Path) -> None:
    """The first read also loads plotly; a pause as long as that would hide a change for a minute."""
    builder = RunBuilder(root=tmp_path / "run", batches=range(1, 41), status="running", attempts=every_batch())
    page = LivePage({"run": RunLayout(builder.write())})
    RunLayout(tmp_path / "run").manifest.unlink()
    assert "manifest.json does not exist" in page.contents()


def test_a_live_page_survives_a_run_that_was_moved(tmp_path: Path) -> None:
    """And shows the run again once it is back."""
    root = healthy(tmp_path / "run")
    page = LivePage({"run": RunLayout(root)})
    page._next_read_s = 0.0
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        page.contents()
    (tmp_path / "elsewhere").rename(root)
    assert "Gradient norms by group" in page.contents()
    assert "Gradient norms by group" in page.page()


def test_a_live_page_shows_that_its_run_was_killed(tmp_path: Path) -> None:
    """No file changes when the process disappears. After a resume the run is running again."""
    builder = RunBuilder(root=tmp_path / "run", status="running", attempts=every_batch(), heartbeat_utc=utc_now())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as training:
        builder.attempts[0].pid, builder.attempts[0].host = training.pid, platform.node()
        page = LivePage({"run": RunLayout(builder.write())})
        was_running = '<span class="badge running">' in page.contents()
        training.kill()
    assert was_running
    page._next_read_s = 0.0
    assert '<span class="badge killed">' in page.contents()
    builder.attempts.append(
        Attempt(number=2, started_utc=NOW, collect_every_n=1, pid=os.getpid(), host=platform.node())
    )
    builder.write_manifest()
    page._next_read_s = 0.0
    assert '<span class="badge running">' in page.contents()


def test_a_run_of_too_few_rows_is_not_called_healthy(tmp_path: Path) -> None:
    """The page shows the verdict of `diagnose`."""
    text = report(tmp_path / "r.html", empty(tmp_path / "run")).read_text(encoding="utf-8")
    assert "Too few rows to tell." in text
    assert "Healthy." not in text
