"""A figure of the page, and the styles by which its lines and points are distinguished."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Trace: TypeAlias = dict[str, Any]

_MAX_LABEL = 60
# After Okabe and Ito, whose colours the colour-blind can distinguish: in their order, made darker or lighter if that is
# needed for a contrast of 3 to 1 on a white and on a dark page. Source: https://jfly.uni-koeln.de/color/
_COLORS = ("#2a74c9", "#d55e00", "#009e73", "#c86f9f", "#ad8000", "#1c98bd", "#8c8c8c")
_DASHES = {"solid": "none", "dash": "7 3", "dot": "2 3", "dashdot": "7 3 2 3"}
_SYMBOLS = {
    "circle": "M10 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "diamond": "M14 1l5 5l-5 5l-5-5z",
    "square": "M10 2h8v8h-8z",
    "triangle-up": "M14 1l5 9h-10z",
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Style:
    """The style of one run or column, the same in every figure."""

    color: str
    dash: str  # of the line, by plotly's name
    symbol: str  # of the points, by plotly's name

    @property
    def dasharray(self) -> str:
        """The dash in SVG's notation."""
        return _DASHES[self.dash]

    @property
    def outline(self) -> str:
        """The symbol as an SVG path centred at 14,6."""
        return _SYMBOLS[self.symbol]


@dataclass(frozen=True, slots=True)
class LegendKey:
    """An entry of a legend: a run or a column, whose traces have its name as their `legendgroup`."""

    name: str
    style: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure: the plot for plotly, and the same content as text for readers who do not see it."""

    name: str  # its id in the page
    title: str
    caption: str
    label: str  # the plot in words, for screen readers
    traces: Sequence[Trace]
    layout: dict[str, Any] = field(default_factory=dict)  # without the colours of text and grid, which the page sets
    table: TextTable | None = None  # the same values as numbers
    legend: Sequence[LegendKey] = ()  # empty if the page's legend or the title names the lines
    is_by_batch: bool = False  # zooms together with the other figures over batches


def style_at(index: int) -> Style:
    """The style of the run or column with this 0-based index."""
    round_number = index // len(_COLORS)
    dash, symbol = (list(names)[round_number % len(names)] for names in (_DASHES, _SYMBOLS))
    return Style(_COLORS[index % len(_COLORS)], dash, symbol)


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, in order. Pass all names of a page at once, so that each has one style everywhere."""
    return {name: style_at(index) for index, name in enumerate(dict.fromkeys(names))}


def label_text(text: object) -> str:
    """Text that plotly shows literally: plotly interprets some HTML. On one line, shortened if it is long."""
    line = " ".join(str(text).split())
    return html.escape(line if len(line) <= _MAX_LABEL else f"{line[: _MAX_LABEL - 1]}…", quote=False)


def number_text(value: float | None) -> str:
    """A number with four digits; a dash for None."""
    return "–" if value is None else f"{value:.4g}"  # noqa: RUF001  # a dash, on purpose
