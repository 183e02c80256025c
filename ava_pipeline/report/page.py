"""Runs as one HTML page: the template filled in, the figures checked by plotly, and nothing that needs a network."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.errors import require_extra
from ava_pipeline.many_runs.find import Pattern, find_runs
from ava_pipeline.report.batch_plots import figures_by_batch
from ava_pipeline.report.contents import facts_of, findings_list, first_rows, time_text
from ava_pipeline.report.epoch_plots import figures_by_epoch
from ava_pipeline.report.figure import Figure, LegendKey, styles_of
from ava_pipeline.report.image_plots import epochs_note, figures_by_image, figures_of_images
from ava_pipeline.report.parting import parting_of
from ava_pipeline.report.run_data import RunData, read_run_data

if TYPE_CHECKING:
    from jinja2 import Environment


_PACKAGE = "ava_pipeline.report"
_LAYOUT: dict[str, Any] = {
    "template": {},  # plotly's default template is 7 kB per figure and has no dark colours
    "autosize": True,
    "showlegend": False,  # the page has its own legends
    "margin": {"l": 56, "r": 14, "t": 26, "b": 44},
    "font": {"family": "system-ui, sans-serif", "size": 12},
    "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "uirevision": "kept",  # new rows leave the zoom unchanged
}


def write_report(runs: Pattern | Iterable[Pattern] | Mapping[str, Pattern], path: str | PathLike[str]) -> None:
    """Write an HTML page of one or several runs: findings, plots and tables.

        from ava_pipeline import write_report
        write_report("outputs/ava/my_run", "report.html")
        write_report("outputs/ava/*", "compared.html")
        write_report({"before": "outputs/ava/a", "after": "outputs/ava/b"}, "compared.html")

    The page is one file that needs no network, and it appears complete or not at all.

    Args:
        runs: a run directory, a pattern such as `outputs/ava/*`, or several of them; or run directories by the
            names that the page shows.
        path: the file to write.

    Raises:
        ConfigError: the extra `report` is not installed.
        NotARunError: nothing that matches is a run.
        OSError: the page cannot be written.
    """
    require_extra("A report", "report", "jinja2", "plotly")
    layouts = (
        {name: RunLayout(Path(run)) for name, run in runs.items()} if isinstance(runs, Mapping) else find_runs(runs)
    )
    page = render_page([read_run_data(name, layout) for name, layout in layouts.items()])
    with written_aside(Path(path)) as file:
        file.write(page.encode("utf-8", "replace"))


def render_page(runs: Sequence[RunData], *, is_live: bool = False) -> str:
    """Render the whole page, which needs no other file; a live page asks its server for new contents."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415  # an optional dependency of this package

    scripts = [get_plotlyjs(), _page_file("page.js")]
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=_title(runs),
            style=_page_file("page.css"),
            scripts=scripts,
            policy=_content_policy(scripts, is_live=is_live),
            contents=render_contents(runs, is_live=is_live),
            is_live=is_live,
        )
    )


def render_contents(runs: Sequence[RunData], *, is_live: bool = False) -> str:
    """Render the part of the page that changes while a run is running; a live page does not compare two runs."""
    return (
        _templates()
        .get_template("contents.html")
        .render(
            title=_title(runs),
            as_of=time_text(utc_now()),
            legend=[LegendKey(name, style) for name, style in styles_of(run.name for run in runs).items()],
            findings=[findings_list(run) for run in runs],
            parting=None if is_live else parting_of(runs),
            by_batch=_with_specs(figures_by_batch(runs)),
            by_epoch=_with_specs(figures_by_epoch(runs)),
            by_image=_with_specs(figures_by_image(runs)),
            of_images=_with_specs(figures_of_images(runs)),
            epochs_note=epochs_note(runs),
            tables=[(run.name, first_rows(run)) for run in runs],
            facts=[(run.name, facts_of(run)) for run in runs],
        )
    )


def _title(runs: Sequence[RunData]) -> str:
    names = ", ".join(run.name for run in runs)
    return names if len(runs) <= 3 else f"{len(runs)} runs"  # noqa: PLR2004  # as many as fit on a line


def _content_policy(scripts: Sequence[str], *, is_live: bool) -> str:
    """The page's Content Security Policy: its own scripts, and requests to its own server if the page is live.

    Source: https://www.w3.org/TR/CSP3/
    """
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    connect = "'self'" if is_live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _with_specs(figures: Iterable[Figure]) -> list[tuple[Figure, str]]:
    return [(figure, _spec(figure)) for figure in figures]


def _spec(figure: Figure) -> str:
    """A figure as JSON, checked by plotly; no text in it can end the script element that holds it."""
    from plotly.graph_objects import Figure  # noqa: PLC0415  # an optional dependency of this package

    return str(Figure({"data": list(figure.traces), "layout": _LAYOUT | figure.layout}).to_json())


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # an optional dependency

    loader = PackageLoader(_PACKAGE, "page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _page_file(name: str) -> str:
    return resources.files(_PACKAGE).joinpath("page", name).read_text(encoding="utf-8")
