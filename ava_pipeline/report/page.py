"""Runs as one page: the template filled, the figures handed to plotly, nothing left that would go to a network."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.errors import require_extra
from ava_pipeline.report.batch_plots import figures_by_batch
from ava_pipeline.report.epoch_plots import figures_by_epoch
from ava_pipeline.report.figure import Figure, Key
from ava_pipeline.report.image_plots import epochs_told, figures_by_image, figures_of_images
from ava_pipeline.report.run_data import RunData, read_run_data
from ava_pipeline.report.style import styles_of
from ava_pipeline.report.text import facts_of, findings_list, first_rows, time_told

if TYPE_CHECKING:
    from jinja2 import Environment


_PACKAGE = "ava_pipeline.report"
_LAYOUT: dict[str, Any] = {
    "template": {},  # plotly's own is 7 kB a figure and knows no dark page
    "autosize": True,
    "showlegend": False,  # the page has its own
    "margin": {"l": 56, "r": 14, "t": 26, "b": 44},
    "font": {"family": "system-ui, sans-serif", "size": 12},
    "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "uirevision": "kept",  # new rows leave the zoom as it is
}


def render_page(runs: Sequence[RunData], *, is_live: bool = False) -> str:
    """The whole page, which needs nothing beside it.

    Args:
        runs: which lie over each other in its plots.
        is_live: the page asks the server it came from for its contents, again and again.
    """
    from plotly.offline import get_plotlyjs  # noqa: PLC0415  # an extra, for this room only

    scripts = [get_plotlyjs(), _text("page.js")]
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=title_of(runs),
            style=_text("page.css"),
            scripts=scripts,
            policy=content_policy(scripts, is_live=is_live),
            contents=render_contents(runs),
            is_live=is_live,
        )
    )


def render_contents(runs: Sequence[RunData]) -> str:
    """What changes while a run goes on."""
    return (
        _templates()
        .get_template("contents.html")
        .render(
            title=title_of(runs),
            as_of=time_told(utc_now()),
            legend=[Key(name, one) for name, one in styles_of(seen.name for seen in runs).items()],
            findings=[findings_list(seen) for seen in runs],
            by_batch=_with_specs(figures_by_batch(runs)),
            by_epoch=_with_specs(figures_by_epoch(runs)),
            by_image=_with_specs(figures_by_image(runs)),
            of_images=_with_specs(figures_of_images(runs)),
            epochs_told=epochs_told(runs),
            tables=[(seen.name, first_rows(seen)) for seen in runs],
            facts=[(seen.name, facts_of(seen)) for seen in runs],
        )
    )


def title_of(runs: Sequence[RunData]) -> str:
    """The names of the runs; of many, how many."""
    names = ", ".join(seen.name for seen in runs)
    return names if len(runs) <= 3 else f"{len(runs)} runs"  # noqa: PLR2004  # as many as a line holds


def content_policy(scripts: Sequence[str], *, is_live: bool) -> str:
    """What the page may do: run its own scripts, and, where it is live, ask its own server.

    Source: https://www.w3.org/TR/CSP3/
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    connect = "'self'" if is_live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _with_specs(figures: Iterable[Figure]) -> list[tuple[Figure, str]]:
    return [(figure, _spec(figure)) for figure in figures]


def _spec(figure: Figure) -> str:
    """A figure as JSON, checked by plotly, in which no text can end the script element that holds it."""
    from plotly.graph_objects import Figure  # noqa: PLC0415  # an extra, for this room only

    return str(Figure({"data": list(figure.traces), "layout": _LAYOUT | figure.layout}).to_json())


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # an extra, for this room only

    loader = PackageLoader(_PACKAGE, "page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _text(name: str) -> str:
    return resources.files(_PACKAGE).joinpath("page", name).read_text(encoding="utf-8")


def write_report(runs: Mapping[str, RunLayout], path: Path) -> None:
    """Write one page of one run or of several; the file appears whole.

    Args:
        runs: by the names that the page shows.
        path: of the page.

    Raises:
        ConfigError: the extra `report` is not installed.
        NotARunError: there is no run.
        OSError: the file cannot be written.
    """
    require_extra("A report", "report", "jinja2", "plotly")
    page = render_page([read_run_data(name, layout) for name, layout in runs.items()])
    with written_aside(path) as file:
        file.write(page.encode("utf-8", "replace"))
