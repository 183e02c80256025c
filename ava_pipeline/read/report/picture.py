"""The gradient norms of a run as a picture that needs no browser."""

from pathlib import Path
from typing import TYPE_CHECKING

from ava_pipeline.errors import ConfigError, NotARunError
from ava_pipeline.read.report.looks import look
from ava_pipeline.read.report.marks import SEVERITY_COLORS, findings_in
from ava_pipeline.read.report.seen import Seen
from ava_pipeline.read.report.series import NORMS, Series, columns_of, epoch_starts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_SLICES = 1000
_MAX_EPOCHS = 20
_FORMATS = ("png", "svg", "pdf", "jpg", "webp")


def need_matplotlib() -> None:
    """Say how to install it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415  # only to see whether it is there
    except ModuleNotFoundError as error:
        raise ConfigError("A picture is drawn with matplotlib: pip install 'ava-pipeline[plot]'.") from error


def write_picture(seen: Seen, path: Path) -> None:
    """Draw the norms of each group on a logarithmic scale, epochs marked, findings as bands.

    Args:
        seen: the run.
        path: its ending says the format.

    Raises:
        ConfigError: the ending names no format.
        NotARunError: the run has no rows of norms.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra, for this file only

    if path.suffix.removeprefix(".").lower() not in _FORMATS:
        raise ConfigError(f"{path}: no picture is written as {path.suffix!r}; the endings: {', '.join(_FORMATS)}.")
    series = columns_of(seen, NORMS)
    if not series:
        raise NotARunError(f"{seen.layout.root} has no rows of gradient norms yet: there is nothing to draw.")
    picture = Figure(figsize=(10, 4.5), layout="constrained")
    axes = picture.add_subplot(yscale="log", xlabel="batch", ylabel="gradient norm (L2)")
    axes.set_title(seen.name, parse_math=False)
    _draw(axes, seen, series)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)


def _draw(axes: "Axes", seen: Seen, series: list[Series]) -> None:
    for place, one in enumerate(series):
        line = one.line(_NUM_SLICES).middle
        axes.plot(line.batches, line.values, label=one.column, color=look(place).color, linewidth=1)
        marked = one.not_finite(_NUM_SLICES)
        axes.plot(
            marked.batches,
            [0.98] * len(marked.batches),
            "x",
            color=look(place).color,
            transform=axes.get_xaxis_transform(),
        )
    for finding in findings_in(seen, "norms"):
        axes.axvspan(finding.batch_idx, finding.batch_idx_end, color=SEVERITY_COLORS[finding.severity], alpha=0.2)
    starts = epoch_starts(series)
    for start in list(starts.values())[:: max(1, -(-len(starts) // _MAX_EPOCHS))]:
        axes.axvline(start, color="0.6", linestyle=":", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
