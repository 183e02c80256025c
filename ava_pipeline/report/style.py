"""How lines and points are told apart: by colours, and beyond those by dashes and symbols."""

from collections.abc import Iterable
from dataclasses import dataclass

# After Okabe and Ito, whose colours the colour-blind tell apart: in their order, darker or lighter where it takes that
# to stand out 3 to 1 from a white page and from a dark one. Source: https://jfly.uni-koeln.de/color/
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
    """How one line or run looks, in every figure alike.

    Attributes:
        color: of its line and its points.
        dash: plotly's name of its line's.
        symbol: plotly's name of its points'.
    """

    color: str
    dash: str
    symbol: str

    @property
    def dasharray(self) -> str:
        """The dash as SVG has it."""
        return _DASHES[self.dash]

    @property
    def outline(self) -> str:
        """The symbol as an SVG path around 14,6."""
        return _SYMBOLS[self.symbol]


def style_at(place: int) -> Style:
    """Of the line or the run with this number, from 0."""
    beyond = place // len(_COLORS)
    dash, symbol = (list(kinds)[beyond % len(kinds)] for kinds in (_DASHES, _SYMBOLS))
    return Style(_COLORS[place % len(_COLORS)], dash, symbol)


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A look each, in their order: what shares figures is given together, so that it looks the same in all of them."""
    return {name: style_at(place) for place, name in enumerate(dict.fromkeys(names))}
