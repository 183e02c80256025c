"""A figure of the page: what plotly draws, and what is there for those who do not see it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ava_pipeline.report.style import Style

Trace: TypeAlias = dict[str, Any]

_MAX_NAME = 60


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of text.

    Attributes:
        header: names of the columns.
        rows: as many texts each.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a legend.

    Attributes:
        name: of the run or column; its traces have it as their `legendgroup`.
        look: of its lines and points.
    """

    name: str
    look: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        name: its id in the page.
        title: above it.
        caption: what is to be seen and how it was made.
        label: what is said to somebody who does not see it.
        traces: as plotly takes them.
        layout: as plotly takes it; colours of text and grid are the page's.
        table: the same in numbers.
        legend: what its lines are; empty where the page's legend or its title says so.
        is_by_batch: its x axis is that of the batches, and zooms with the others'.
    """

    name: str
    title: str
    caption: str
    label: str
    traces: Sequence[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    table: TextTable | None = None
    legend: Sequence[Key] = ()
    is_by_batch: bool = False


def plain(text: object) -> str:
    """Text that plotly, which knows some HTML, shows as it is; on one line, and cut where it is long."""
    line = " ".join(str(text).split())
    return html.escape(line if len(line) <= _MAX_NAME else f"{line[: _MAX_NAME - 1]}…", quote=False)


def number(value: float | None) -> str:
    """Four digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"  # noqa: RUF001  # a dash, on purpose
