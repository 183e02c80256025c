"""The parts of a figure over batches: one above the other, a y axis each, and one x axis for all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ava_pipeline.read.report.drawn import plain

_WHOLE_HEIGHT, _PART_HEIGHT, _AROUND = 400, 165, 100
_GAP_PX = 30
_LOG = {"type": "log", "exponentformat": "power"}
_LINEAR = {"type": "linear", "exponentformat": "power", "minexponent": 6, "separatethousands": True}
_FEW_TICKS, _FEW_POWERS = 5, 3  # a part is low: plotly's own number of them would lie over each other

Parts: TypeAlias = Mapping[str, str]


def parts_of(columns: Sequence[str], *, each: bool) -> Parts:
    """Column -> plotly's name of its y axis: one each, or one for all."""
    return {column: f"y{place + 1}" if each and place else "y" for place, column in enumerate(columns)}


def axes_of(parts: Parts, *, is_log: bool) -> dict[str, Any]:
    """All axes, as plotly takes them."""
    axes = list(dict.fromkeys(parts.values()))
    gap = _GAP_PX / (height_of(parts) - _AROUND)
    height = (1 - gap * (len(axes) - 1)) / len(axes)
    style: dict[str, Any] = _LOG if is_log else _LINEAR
    if len(axes) > 1:
        style = style | {"nticks": _FEW_POWERS if is_log else _FEW_TICKS}
    found: dict[str, Any] = {"xaxis": {"title": {"text": "batch"}, "anchor": axes[-1]}}
    for place, axis in enumerate(axes):
        bottom = max(0.0, 1 - height - place * (height + gap))
        found[axis.replace("y", "yaxis")] = style | {"domain": [bottom, min(1.0, bottom + height)]}
    return found


def height_of(parts: Parts) -> int:
    """Of the whole figure, in pixels."""
    num_parts = len(set(parts.values()))
    return _AROUND + _PART_HEIGHT * num_parts if num_parts > 1 else _WHOLE_HEIGHT


def part_names(parts: Parts) -> Iterator[dict[str, Any]]:
    """The column above the left end of its part: at the right lie the plot's own buttons."""
    for column, axis in parts.items():
        place = {"xref": "paper", "x": 0, "yref": f"{axis} domain", "y": 1, "xanchor": "left", "yanchor": "bottom"}
        yield place | {"text": f"<b>{plain(column)}</b>", "showarrow": False}
