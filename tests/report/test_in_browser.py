"""Reports in headless Chromium: plots, controls, accessibility, and names that contain HTML."""

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import TableEntry, read_manifest, write_manifest
from ava_pipeline.contract.parquet import read_parquet, write_parquet
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.report.live import LivePage, server_of
from tests.report.reported import BUILDERS, every_batch, healthy, report
from tests.validate.building import STEPS, RunBuilder, norms_of

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_HOSTILE = "<script>alert(1)</script>"
OpenReport: TypeAlias = "Callable[[str], OpenedPage]"
_RANGE = "plot => plot.layout.xaxis.range"

pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright, which drives the Chromium that is installed on this system."""
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    launched = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])  # CI runs as root
    yield launched
    launched.close()


class OpenedPage:
    """A page, and everything that went wrong on it.

    Attributes:
        page: the open page.
        problems: messages of the console, dialogs, and requests to other addresses.
    """

    def __init__(self, browser: Browser, address: str, **settings: Any) -> None:
        self.page: Page = browser.new_page(**settings)
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._check_request(request.url, address))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        self.page.goto(address)

    def _check_request(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.problems.append(f"request: {url}")

    def plot(self, name: str) -> Any:
        """The plot of a figure."""
        return self.page.locator(f"figure#{name} .plot")

    def range(self, name: str) -> tuple[float, float]:
        """The first and the last batch that a plot shows."""
        first, last = self.plot(name).evaluate(_RANGE)
        return first, last


@pytest.fixture(scope="module")
def open_report(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> OpenReport:
    """Opens the report of a run, once for all tests, since that takes seconds."""

    @cache
    def opened(name: str) -> OpenedPage:
        folder = tmp_path_factory.mktemp(name)
        return OpenedPage(browser, report(folder / "r.html", BUILDERS[name](folder / name)).as_uri())

    return opened


def eventually(opened: OpenedPage, is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds, from outside: the page's policy forbids Playwright's waiting scripts."""
    for _ in range(200):
        if is_so():
            return
        opened.page.wait_for_timeout(50)
    pytest.fail("the condition never held")


def show_all(opened: OpenedPage) -> tuple[float, float]:
    """Zoom out to all batches, since tests share the page."""
    opened.page.locator("#norms button[data-zoom=all]").click()
    eventually(opened, lambda: opened.range("rates")[0] <= 1)
    return opened.range("norms")


@pytest.mark.parametrize("builder", BUILDERS)
def test_every_run_is_drawn_without_messages_in_the_console(builder: str, open_report: OpenReport) -> None:
    """Opened from disk: no requests, a plot in each figure, and one zoom for all plots over batches."""
    opened = open_report(builder)
    figures = opened.page.locator("figure")
    expect(opened.page.locator("figure .plot:has(.main-svg)")).to_have_count(figures.count())
    if builder == "empty":
        expect(opened.page.locator("#batches")).to_contain_text("No rows yet")
        assert figures.count() == 0
    else:
        first, last = show_all(opened)
        opened.page.locator("#norms button[data-zoom=in]").click()
        names = ("norms", "ratio", "rates")
        eventually(opened, lambda: all(first < opened.range(name)[0] < opened.range(name)[1] < last for name in names))
    assert not opened.problems


def test_dragging_the_mouse_zooms(open_report: OpenReport) -> None:
    """Into the batches that were dragged over."""
    opened = open_report("healthy")
    show_all(opened)
    box = opened.page.locator("#norms .nsewdrag").first.bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + 200, steps=4)
    opened.page.mouse.up()
    eventually(opened, lambda: 50 < opened.range("norms")[0] < 70 and 80 < opened.range("norms")[1] < 100)


def test_a_finding_links_to_its_plot(open_report: OpenReport) -> None:
    """By keyboard: the plot scrolls into view and zooms to the batches of the finding, with a margin."""
    opened = open_report("faulty")
    show_all(opened)
    link = opened.page.locator("#findings li:has-text('spike') a").first
    expect(link).to_have_text("batch 80")
    link.focus()
    opened.page.keyboard.press("Enter")
    eventually(opened, lambda: opened.range("norms") == (70, 90))
    expect(opened.page.locator("#norms")).to_be_in_viewport()
    expect(opened.page.locator("#norms")).to_be_focused()
    bands = opened.plot("norms").evaluate("plot => plot.layout.shapes.filter(one => one.type === 'rect')")
    assert [80, 80] in [[band["x0"], band["x1"]] for band in bands]


def test_a_cell_of_the_heat_map_names_its_layer_and_its_norm(open_report: OpenReport) -> None:
    """In the hover text; the map has a row for each layer."""
    opened = open_report("everything")
    show_all(opened)
    map_area = opened.page.locator("#layers .nsewdrag").first
    map_area.scroll_into_view_if_needed()
    box = map_area.bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 8)
    hover = opened.page.locator("#layers .hovertext")
    expect(hover).to_contain_text("stem.weight")
    expect(hover).to_contain_text(re.compile(r"batch 6\d(\.5)?: \d"))
    assert not opened.problems


def shown_runs(opened: OpenedPage, name: str) -> set[str]:
    """The runs whose lines a plot shows."""
    visible = "plot => plot.data.filter(trace => trace.visible !== false).map(trace => trace.legendgroup)"
    return set(opened.plot(name).evaluate(visible))


def test_a_run_can_be_hidden_in_all_plots_at_once(browser: Browser, tmp_path: Path) -> None:
    """Its button in the legend hides its lines and the bands of its findings, and shows them again."""
    roots = BUILDERS["healthy"](tmp_path / "one"), BUILDERS["faulty"](tmp_path / "two")
    opened = OpenedPage(browser, report(tmp_path / "r.html", *roots).as_uri())
    button = opened.page.get_by_role("button", name="two")
    bands = "plot => plot.layout.shapes.filter(one => one.type === 'rect' && one.visible !== false).length"
    assert opened.plot("norms").evaluate(bands) > 0
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    names = ("norms", "values", "metric-srcc", "predicted")
    eventually(opened, lambda: all(shown_runs(opened, name) == {"one"} for name in names))
    assert opened.plot("norms").evaluate(bands) == 0
    button.click()
    eventually(opened, lambda: shown_runs(opened, "norms") == {"one", "two"})
    assert not opened.problems


def test_twelve_runs_fit_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    """The legend leaves the plots their height, and the tick labels of low subplots do not overlap."""
    healthy(tmp_path / "runs" / "a-run-with-a-rather-long-name-0")
    for number in range(1, 12):
        name = f"a-run-with-a-rather-long-name-{number}"
        shutil.copytree(tmp_path / "runs" / "a-run-with-a-rather-long-name-0", tmp_path / "runs" / name)
    phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    opened = OpenedPage(browser, report(tmp_path / "r.html", tmp_path / "runs" / "*").as_uri(), **phone)
    for name in ("metric-srcc", "rates", "norms"):
        heights = "plot => [...plot.querySelectorAll('.nsewdrag')].map(one => one.getBoundingClientRect().height)"
        assert min(opened.plot(name).evaluate(heights)) > 120
    tops = "plot => [...plot.querySelectorAll('.ytick, .y2tick')].map(one => one.getBoundingClientRect().top)"
    found = sorted(opened.plot("norms").evaluate(tops))
    assert all(after - before > 10 for before, after in pairwise(found))


def test_the_page_is_accessible(open_report: OpenReport) -> None:
    """Each plot has a description and a table, each button a name."""
    page = open_report("healthy").page
    words = "Gradient norms by group, line plot over batches 1 to 120, 3 epochs."
    expect(page.get_by_role("group", name=words)).to_be_visible()
    assert page.locator("figure").count() == page.locator("figure details table").count()
    expect(page.locator("#norms").get_by_role("button", name="Zoom in")).to_be_visible()
    assert page.locator("h1").count() == 1


def test_html_in_a_name_stays_text(browser: Browser, tmp_path: Path) -> None:
    """In the name of a run and in its info; on the page, in the plots and in their hover texts."""
    root = healthy(tmp_path / "<script>alert(1)<" / "script>")
    layout = RunLayout(root)
    manifest = read_manifest(layout.manifest)
    manifest.run_info["name"] = f"{_HOSTILE}</dl><img src=x onerror=alert(2)>"
    write_manifest(layout.manifest, manifest)
    healthy(tmp_path / "<b onclick=alert(3)>" / "run")
    opened = OpenedPage(browser, report(tmp_path / "r.html", f"{tmp_path}/*/*").as_uri())
    expect(opened.page.locator("h1")).to_contain_text(_HOSTILE)
    expect(opened.page.locator("#legend button").last).to_have_text(_HOSTILE)
    expect(opened.page.locator("#legend button").first).to_have_text("<b onclick=alert(3)>/run")
    opened.page.locator("#norms .nsewdrag").first.hover()
    expect(opened.page.locator("#norms .hoverlayer").first).to_contain_text(_HOSTILE)
    expect(opened.page.locator("#facts")).to_contain_text("<img src=x onerror=alert(2)>")
    assert opened.page.locator("img, b[onclick], main script:not([type='application/json'])").count() == 0
    assert not opened.problems


def test_the_page_follows_the_color_scheme_and_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Also if the scheme changes while the page is open."""
    path = report(tmp_path / "r.html", healthy(tmp_path / "run"))
    phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    opened = OpenedPage(browser, path.as_uri(), color_scheme="light", **phone)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    ink = "plot => getComputedStyle(plot.querySelector('.xtick text')).fill"
    light = opened.plot("norms").evaluate(ink)
    opened.page.emulate_media(color_scheme="dark")
    eventually(opened, lambda: opened.plot("norms").evaluate(ink) != light)
    assert not opened.problems


@contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that is killed when the test ends."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def append(root: Path, first: int, last: int) -> None:
    """Append rows, as a running run does."""
    path = RunLayout(root).csv("gradient_norms")
    rows = [
        f"{batch},{(batch - 1) // 40},{','.join(str(norm) for norm in norms_of(batch).values())}\n"
        for batch in range(first, last + 1)
    ]
    with path.open("a") as file:
        file.write("".join(rows))


def test_a_live_page_shows_new_rows_and_keeps_the_zoom(browser: Browser, tmp_path: Path) -> None:
    """Ctrl-C ends the server with status 0; the page says so and keeps its contents."""
    builder = RunBuilder(root=tmp_path / "run", batches=range(1, 41), status="running", formats=("csv",))
    builder.attempts = every_batch()
    root = builder.write()
    command = [sys.executable, "-m", "ava_pipeline", "report", str(root), "--live", "0"]
    with started(command) as process:
        assert process.stdout is not None
        opened = OpenedPage(browser, process.stdout.readline().split()[1])
        expect(opened.page.locator("#live")).to_have_text("Live: new rows appear automatically.")
        opened.page.locator("#norms-table summary").click()
        opened.page.locator("#norms button[data-zoom=in]").click()
        zoomed = opened.range("norms")
        append(root, 41, 90)
        expect(opened.page.locator("#norms-table table")).to_contain_text("81 to 90", timeout=60_000)
        assert opened.range("norms") == zoomed
        assert opened.plot("norms").evaluate("plot => plot.calcdata[0].at(-1).x") == 90
        assert not opened.problems
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    expect(opened.page.locator("#live")).to_contain_text("has stopped; the page shows the last state", timeout=10_000)
    expect(opened.page.locator("#norms-table table")).to_be_visible()


def add_accuracy(layout: RunLayout) -> None:
    """Add a second value to the steps, as a run has that was resumed by a changed training loop."""
    rows = read_parquet(layout.parquet("steps"))
    layout.csv("steps").unlink()
    write_parquet(layout.parquet("steps"), rows.append_column("accuracy", rows["loss"]))
    manifest = read_manifest(layout.manifest)
    wider = TableEntry(declaration=RunTable.of(STEPS.table, ("loss", "accuracy")), formats=("parquet",))
    write_manifest(layout.manifest, manifest.model_copy(update={"tables": manifest.tables | {"steps": wider}}))


def test_a_live_page_follows_a_run_whose_columns_change(browser: Browser, tmp_path: Path) -> None:
    """Its tables get the new header, and its plots the height and the legend that they need."""
    root = healthy(tmp_path / "run")
    page = LivePage({"run": RunLayout(root)})
    with server_of(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        opened = OpenedPage(browser, f"http://127.0.0.1:{server.server_port}/")
        opened.page.locator("#values-table summary").click()
        expect(opened.page.locator("#values-table th")).to_contain_text(["epochs", "batches", "loss"])
        before = opened.plot("values").evaluate("plot => plot.offsetHeight")
        add_accuracy(RunLayout(root))
        page._next_read_s = 0.0
        expect(opened.page.locator("#values-table th")).to_contain_text(
            ["epochs", "batches", "loss", "accuracy"], timeout=30_000
        )
        assert opened.plot("values").evaluate("plot => plot.offsetHeight") > before
        assert not opened.problems
        server.shutdown()
        thread.join()
