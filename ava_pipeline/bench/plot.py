"""A picture of a bench: every figure that has a target, over that target."""

from pathlib import Path

from ava_pipeline.bench.figures import Figure, shown
from ava_pipeline.bench.report import Report
from ava_pipeline.bench.table import target
from ava_pipeline.errors import ConfigError

_LEAST = 0.01
_WELL, _MISSED = "tab:green", "tab:red"


def need_matplotlib() -> None:
    """Say how to install it, before anything is measured for it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415  # only to see whether it is there
    except ModuleNotFoundError as error:
        raise ConfigError("--plot draws with matplotlib: pip install 'ava-pipeline[plot]'.") from error


def write_plot(report: Report, path: Path) -> None:
    """Draw a bar a figure: how much of its limit is used up, on a logarithmic scale.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file's ending names no format that matplotlib writes.
    """
    from matplotlib.figure import Figure as Picture  # noqa: PLC0415  # an extra, for this file only

    judged = [figure for figure in report.figures if figure.target is not None]
    picture = Picture(figsize=(9, 1 + 0.4 * len(judged)), layout="constrained")
    axes = picture.add_subplot(
        xscale="log", xlabel="share of the limit used up; left of the line the target is reached"
    )
    for place, figure in enumerate(reversed(judged)):
        used = max(_used(figure), _LEAST)
        axes.barh(place, used, color=_WELL if figure.is_reached else _MISSED)
        axes.text(used, place, f" {shown(figure.estimate.value)} {figure.unit} ({target(figure.target)})", va="center")
    axes.set_yticks(range(len(judged)), [figure.title for figure in reversed(judged)])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlim(_LEAST / 2, 10 * max([1.0, *map(_used, judged)]))
    axes.set_title(report.machine, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)


def _used(figure: Figure) -> float:
    if figure.target is None:
        raise TypeError(f"{figure.name} has no target.")
    share = figure.estimate.value / figure.target.limit
    return 1 / share if figure.target.at_least else share
