"""A figure of the page: the plot for plotly, and the same content as text for readers who do not see it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ava_pipeline.report.style import Style

Trace: TypeAlias = dict[str, Any]

_MAX_LABEL = 60


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of text.

    Attributes:
        header: names of the columns.
        rows: a text for each column.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class LegendKey:
    """An entry of a legend.

    Attributes:
        name: the run or the column; its traces have this name as their `legendgroup`.
        style: of its lines and points.
    """

    name: str
    style: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        name: its id in the page.
        title: shown above the plot.
        caption: what the plot shows and how it was made.
        label: the plot in words, for screen readers.
        traces: plotly's traces.
        layout: plotly's layout; the page sets the colours of text and grid.
        table: the same values as numbers.
        legend: its columns; empty if the page's legend or the title names the lines.
        is_by_batch: its x axis counts batches, and zooms together with the other figures over batches.
    """

    name: str
    title: str
    caption: str
    label: str
    traces: Sequence[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    table: TextTable | None = None
    legend: Sequence[LegendKey] = ()
    is_by_batch: bool = False


def label_text(text: object) -> str:
    """Text that plotly shows literally: plotly interprets some HTML. On one line, shortened if it is long."""
    line = " ".join(str(text).split())
    return html.escape(line if len(line) <= _MAX_LABEL else f"{line[: _MAX_LABEL - 1]}…", quote=False)


def number_text(value: float | None) -> str:
    """A number with four digits; a dash for None."""
    return "–" if value is None else f"{value:.4g}"  # noqa: RUF001  # a dash, on purpose
