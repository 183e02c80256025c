"""The parts of a figure over batches: one above the other, a y axis each, and one x axis for all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ava_pipeline.read.report.drawn import plain

WHOLE_HEIGHT = 440
_PART_HEIGHT, _AROUND = 170, 140
_GAP_PX = 30
_FEW_TICKS = 3  # a part is low: plotly's own number of them would lie over each other

Parts: TypeAlias = Mapping[str, str]


def parts_of(columns: Sequence[str], *, each: bool) -> Parts:
    """Column -> plotly's name of its y axis: one each, or one for all."""
    return {column: f"y{place + 1}" if each and place else "y" for place, column in enumerate(columns)}


def axes_of(parts: Parts, *, is_log: bool) -> dict[str, Any]:
    """All axes, as plotly takes them."""
    axes = list(dict.fromkeys(parts.values()))
    gap = _GAP_PX / (_PART_HEIGHT * len(axes)) if len(axes) > 1 else 0
    style: dict[str, Any] = {"type": "log" if is_log else "linear", "exponentformat": "power"}
    style |= {"nticks": _FEW_TICKS} if len(axes) > 1 else {}
    found: dict[str, Any] = {"xaxis": {"title": {"text": "batch"}, "anchor": axes[-1]}}
    for place, axis in enumerate(axes):
        top = 1 - place / len(axes)
        domain = [max(0.0, top - 1 / len(axes) + gap), top]
        found[axis.replace("y", "yaxis")] = style | {"domain": domain}
    return found


def height_of(parts: Parts) -> int:
    """Of the whole figure, in pixels."""
    num_parts = len(set(parts.values()))
    return _AROUND + _PART_HEIGHT * num_parts if num_parts > 1 else WHOLE_HEIGHT


def part_names(parts: Parts) -> Iterator[dict[str, Any]]:
    """The column above the left end of its part: at the right lie the plot's own buttons."""
    for column, axis in parts.items():
        place = {"xref": "paper", "x": 0, "yref": f"{axis} domain", "y": 1, "xanchor": "left", "yanchor": "bottom"}
        yield place | {"text": f"<b>{plain(column)}</b>", "showarrow": False}
