"""The style of lines and points: a colour for each run or column, and beyond the colours also dashes and symbols."""

from collections.abc import Iterable
from dataclasses import dataclass

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
class Style:
    """The style of one run or column, the same in every figure.

    Attributes:
        color: of the line and the points.
        dash: of the line, by plotly's name.
        symbol: of the points, by plotly's name.
    """

    color: str
    dash: str
    symbol: str

    @property
    def dasharray(self) -> str:
        """The dash in SVG's notation."""
        return _DASHES[self.dash]

    @property
    def outline(self) -> str:
        """The symbol as an SVG path centred at 14,6."""
        return _SYMBOLS[self.symbol]


def style_at(index: int) -> Style:
    """The style of the run or column with this 0-based index."""
    round_number = index // len(_COLORS)
    dash, symbol = (list(names)[round_number % len(names)] for names in (_DASHES, _SYMBOLS))
    return Style(_COLORS[index % len(_COLORS)], dash, symbol)


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, in order. Pass all names of a page at once, so that each has one style everywhere."""
    return {name: style_at(index) for index, name in enumerate(dict.fromkeys(names))}
