"""The gradient norms of a run as a picture that needs no browser."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ava_pipeline.contract.finding import Finding
from ava_pipeline.errors import ConfigError, NotARunError
from ava_pipeline.report.annotations import SEVERITY_COLORS, findings_in
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.series import NORMS, Points, Series, columns_of, epoch_starts
from ava_pipeline.report.style import Style, style_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_NUM_SLICES = 1000
_MAX_EPOCHS = 10
_TOP, _BOTTOM = 0.98, 0.02  # of the height
_FORMATS = ("png", "svg", "pdf", "jpg", "webp")


def write_picture(seen: RunData, path: Path) -> None:
    """Draw the norms of each group into a file.

    Args:
        seen: the run.
        path: its ending says the format.

    Raises:
        ConfigError: the ending names no format.
        NotARunError: the run has no rows of norms.
        OSError: the file cannot be written.
    """
    if path.suffix.removeprefix(".").lower() not in _FORMATS:
        raise ConfigError(f"{path}: no picture is written as {path.suffix!r}; the endings: {', '.join(_FORMATS)}.")
    picture = drawn(seen)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)


def drawn(seen: RunData) -> "Figure":
    """The norms of each group on a logarithmic scale, epochs named, findings as bands, what is no number marked.

    Raises:
        NotARunError: the run has no rows of norms.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra, for this file only

    series = columns_of(seen, NORMS)
    if not series:
        raise NotARunError(f"{seen.layout.root} has no rows of gradient norms yet: there is nothing to draw.")
    picture = Figure(figsize=(10, 4.5), layout="constrained")
    axes = picture.add_subplot(yscale="log", xlabel="batch", ylabel="gradient norm (L2)")
    axes.set_title(seen.name, parse_math=False, pad=18)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for place, one in enumerate(series):
        _draw(axes, one, style_at(place))
    _draw_findings(axes, findings_in(seen, "norms"))
    _draw_epochs(axes, epoch_starts(series))
    _draw_legend(axes, series)
    return picture


def _draw(axes: "Axes", series: Series, look: Style) -> None:
    line = series.line(_NUM_SLICES)
    axes.plot(line.middle.batches, line.middle.values, label=series.column, color=look.color, linewidth=1)
    if not line.is_whole:
        edges = (line.middle.batches, line.lowest.values, line.highest.values)
        axes.fill_between(*edges, facecolor=f"{look.color}40", edgecolor=f"{look.color}99", linewidth=0.6)
    for marker, height, marked in _marks(series):
        places = [height] * len(marked.batches)
        axes.plot(marked.batches, places, marker, color=look.color, transform=axes.get_xaxis_transform())


def _marks(series: Series) -> tuple[tuple[str, float, Points], ...]:
    """The marker, its height in the plot, and where it stands, of what a logarithmic scale cannot show."""
    return ("x", _TOP, series.not_finite(_NUM_SLICES)), ("v", _BOTTOM, series.zeros(_NUM_SLICES))


def _draw_findings(axes: "Axes", findings: Sequence[Finding]) -> None:
    """A band each, edged so that one of a single batch can be seen; a severity once in the legend."""
    named: set[str] = set()
    for finding in findings:
        color = SEVERITY_COLORS[finding.severity]
        label = "" if finding.severity in named else f"finding: {finding.severity}"
        first, last = finding.batch_idx, finding.batch_idx_end
        axes.axvspan(first, last, facecolor=f"{color}33", edgecolor=color, linewidth=1.5, zorder=0.5, label=label)
        named.add(finding.severity)


def _draw_epochs(axes: "Axes", starts: Mapping[int, int]) -> None:
    for epoch, start in list(starts.items())[:: max(1, -(-len(starts) // _MAX_EPOCHS))]:
        axes.axvline(start, color="0.6", linestyle=":", linewidth=0.8)
        axes.annotate(
            f"epoch {epoch}", (start, 1), (0, 3), ("data", "axes fraction"), "offset points", fontsize="small"
        )


def _draw_legend(axes: "Axes", series: Sequence[Series]) -> None:
    """Beside the plot; marks are named where there are any."""
    marks = [mark for one in series for mark in _marks(one)]
    for marker, name in (("x", "nan or inf"), ("v", "0")):
        if any(kind == marker and len(marked.batches) for kind, _, marked in marks):
            axes.plot([], [], marker, color="0.4", label=name)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
