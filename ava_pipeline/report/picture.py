"""The gradient norms of a run as a picture that needs no browser."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ava_pipeline.contract.finding import Finding
from ava_pipeline.errors import ConfigError, NotARunError
from ava_pipeline.report.annotations import SEVERITY_COLORS, findings_in, step_for
from ava_pipeline.report.figure import Style, style_at
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.series import NORMS, Points, Series, columns_of, epoch_starts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_NUM_SLICES = 1000
_MAX_EPOCHS = 10
_TOP, _BOTTOM = 0.98, 0.02  # shares of the plot's height
_FORMATS = ("png", "svg", "pdf", "jpg", "webp")


def write_picture(run: RunData, path: Path) -> None:
    """Write a picture of the norms of each group, in the format of the file's suffix.

    Raise ConfigError if the suffix is not that of a format, and NotARunError if the run has no gradient norms yet.
    """
    if path.suffix.removeprefix(".").lower() not in _FORMATS:
        raise ConfigError(f"{path}: expected a name that ends in .{', .'.join(_FORMATS)}, got {path.suffix!r}.")
    figure = norms_figure(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def norms_figure(run: RunData) -> "Figure":
    """The norms with epochs, findings, and markers for 0, nan and inf. Raise NotARunError if the run has no norms."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # an optional dependency of this file

    series = columns_of(run, NORMS)
    if not series:
        raise NotARunError(f"{run.layout.root} has no rows of gradient norms to draw yet; wait for the first step.")
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot(yscale="log", xlabel="batch", ylabel="gradient norm (L2)")
    axes.set_title(run.name, parse_math=False, pad=18)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for index, column in enumerate(series):
        _draw(axes, column, style_at(index))
    _draw_findings(axes, findings_in(run, "norms"))
    _draw_epochs(axes, epoch_starts(series))
    _draw_legend(axes, series)
    return figure


def _draw(axes: "Axes", series: Series, style: Style) -> None:
    line = series.line(_NUM_SLICES)
    axes.plot(line.middle.batches, line.middle.values, label=series.column, color=style.color, linewidth=1)
    if not line.is_complete:
        edges = (line.middle.batches, line.lowest.values, line.highest.values)
        axes.fill_between(*edges, facecolor=f"{style.color}40", edgecolor=f"{style.color}99", linewidth=0.6)
    for marker, height, points in _markers(series):
        heights = [height] * len(points.batches)
        axes.plot(points.batches, heights, marker, color=style.color, transform=axes.get_xaxis_transform())


def _markers(series: Series) -> tuple[tuple[str, float, Points], ...]:
    """Marker, height and points of the values that a logarithmic scale cannot show."""
    return ("x", _TOP, series.not_finite(_NUM_SLICES)), ("v", _BOTTOM, series.zeros(_NUM_SLICES))


def _draw_findings(axes: "Axes", findings: Sequence[Finding]) -> None:
    """A band for each finding, with an edge that keeps a single batch visible; each severity once in the legend."""
    in_legend: set[str] = set()
    for finding in findings:
        color = SEVERITY_COLORS[finding.severity]
        label = "" if finding.severity in in_legend else f"finding: {finding.severity}"
        first, last = finding.batch_idx, finding.batch_idx_end
        axes.axvspan(first, last, facecolor=f"{color}33", edgecolor=color, linewidth=1.5, zorder=0.5, label=label)
        in_legend.add(finding.severity)


def _draw_epochs(axes: "Axes", starts: Mapping[int, int]) -> None:
    for epoch, start in list(starts.items())[:: step_for(len(starts), _MAX_EPOCHS)]:
        axes.axvline(start, color="0.6", linestyle=":", linewidth=0.8)
        axes.annotate(
            f"epoch {epoch}", (start, 1), (0, 3), ("data", "axes fraction"), "offset points", fontsize="small"
        )


def _draw_legend(axes: "Axes", series: Sequence[Series]) -> None:
    """Beside the plot; markers are explained if they are used."""
    used = {marker for column in series for marker, _, points in _markers(column) if len(points.batches)}
    for marker, name in (("x", "nan or inf"), ("v", "0")):
        if marker in used:
            axes.plot([], [], marker, color="0.4", label=name)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
