"""Tables of metrics on a terminal, and text that cannot do harm there."""

import math
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from ava_pipeline.metrics import Metrics


GENERATED = "generated, not AVA"
_TITLES = {"srcc": "SRCC", "plcc": "PLCC"}
_SHORT_TITLES = _TITLES | {"accuracy": "acc."}  # so that all metrics fit into 80 columns
_PERCENTAGES = {"accuracy"}
_UNLIMITED_CHARS = 100_000


def metrics_table(title: str, leading: Sequence[str], *, generated: bool) -> Table:
    """Start a table of metrics with the `leading` titles to their left; if `generated`, the title says so."""
    from ava_pipeline.metrics import Metrics  # noqa: PLC0415  # it loads SciPy, which most commands do without

    table = plain_table(title, generated=generated)
    for name in (*leading, *(_SHORT_TITLES.get(field.name, field.name) for field in fields(Metrics))):
        # On a narrow terminal the first column is wrapped, and every number stays whole.
        is_first = name == leading[0]
        table.add_column(name, justify="left" if is_first else "right", no_wrap=not is_first, overflow="fold")
    return table


def add_metrics(table: Table, leading: Sequence[str], metrics: "Metrics", *, style: str = "") -> None:
    """Add a row; metrics that are not defined are shown as a dash, and control characters in `leading` are escaped."""
    names = (field.name for field in fields(metrics))
    numbers = (metric_text(name, value) for name, value in zip(names, astuple(metrics), strict=True))
    table.add_row(*(Text(printable(text)) for text in leading), *numbers, style=style)


def plain_table(title: str, *, generated: bool = False) -> Table:
    """Start a table without lines, which fits into 80 columns; `generated` adds "generated, not AVA" to its title."""
    return Table(
        title=f"{title} ({GENERATED})" if generated else title,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def print_whole_lines(table: Table, console: "Console") -> None:
    """Print a table; in a file or a pipe, each row is one line of any length, without spaces at its end."""
    if console.is_terminal:
        console.print(table)
        return
    console.width = _UNLIMITED_CHARS
    with console.capture() as captured:
        console.print(table)
    console.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def metric_title(name: str) -> str:
    """A metric's name as papers write it."""
    return _TITLES.get(name, name)


def metric_text(name: str, value: float) -> str:
    """A metric's value as text: shares in percent, other metrics rounded to four digits."""
    return f"{value:.1%}" if name in _PERCENTAGES and math.isfinite(value) else rounded(value)


def rounded(value: float, digits: int = 4, *, sign: bool = False) -> str:
    """Round a number for reading; with `sign` a plus is shown too, and nan or inf is a dash."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001  # a dash, on purpose.
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def printable(text: str) -> str:
    r"""Escape characters that a terminal obeys or hides, such as colours and direction marks: ESC becomes `\x1b`."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
