"""Metrics as tables on the terminal."""

import math
from collections.abc import Sequence
from dataclasses import astuple, fields

from rich.table import Table

from ava_pipeline.metrics import Metrics

GENERATED = "generated, not AVA"
_TITLES = {"srcc": "SRCC", "plcc": "PLCC"}
_PERCENTAGES = {"accuracy"}
_NAMES = [field.name for field in fields(Metrics)]


def metrics_table(title: str, leading: Sequence[str], *, generated: bool) -> Table:
    """Begin a table of metrics.

    Args:
        title: above the table.
        leading: names of the columns in front of the metrics.
        generated: the figures are of generated data, which the title then says.
    """
    table = plain_table(title, generated=generated)
    for name in (*leading, *(_TITLES.get(name, name) for name in _NAMES)):
        # Where the terminal is narrow, the name in front gives way and no figure does.
        is_front = name == leading[0]
        table.add_column(name, justify="left" if is_front else "right", no_wrap=not is_front, overflow="fold")
    return table


def plain_table(title: str, *, generated: bool = False) -> Table:
    """Begin a table without lines, which fits into 80 columns; where its figures are of generated data, it says so."""
    return Table(
        title=f"{title} ({GENERATED})" if generated else title,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def add_metrics(table: Table, leading: Sequence[str], metrics: Metrics) -> None:
    """Add a row; a figure that is not defined is a dash."""
    table.add_row(*leading, *(_shown(name, value) for name, value in zip(_NAMES, astuple(metrics), strict=True)))


def shown(value: float, digits: int = 4) -> str:
    """A number rounded for reading, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"  # noqa: RUF001  # a dash, on purpose.


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name in _PERCENTAGES and math.isfinite(value) else shown(value)
