"""Tables of metrics and harmless text on a terminal."""

import math
from collections.abc import Sequence
from dataclasses import astuple, fields

from rich.table import Table
from rich.text import Text

from ava_pipeline.metrics import Metrics

GENERATED = "generated, not AVA"
_TITLES = {"srcc": "SRCC", "plcc": "PLCC"}
_NARROW = {"accuracy": "acc."}  # where all metrics stand in a line of 80 characters
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
    for name in (*leading, *(_NARROW.get(name, metric_title(name)) for name in _NAMES)):
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


def add_metrics(table: Table, leading: Sequence[str], metrics: Metrics, *, style: str = "") -> None:
    """Add a row; a figure that is not defined is a dash, and `leading` is text, whatever is in it."""
    figures = (metric_text(name, value) for name, value in zip(_NAMES, astuple(metrics), strict=True))
    table.add_row(*(Text(printable(text)) for text in leading), *figures, style=style)


def metric_title(name: str) -> str:
    """A metric's name as the field writes it."""
    return _TITLES.get(name, name)


def rounded(value: float, digits: int = 4, *, sign: bool = False) -> str:
    """A number rounded for reading, its sign also where it is +, or a dash where there is none."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001  # a dash, on purpose.
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def metric_text(name: str, value: float) -> str:
    """A metric as it is read: shares in percent."""
    return f"{value:.1%}" if name in _PERCENTAGES and math.isfinite(value) else rounded(value)


def printable(text: str) -> str:
    r"""Text from a file or a name, with every character escaped that a terminal would act upon, or that cannot be seen.

    Colours, cursor movements, line feeds, and marks that turn the direction of text around: `\x1b` is what is seen.
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
