"""What a bench found, as JSON, as a table and as a picture."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ava_pipeline.bench.command import Options
from ava_pipeline.bench.peers import Compared
from ava_pipeline.bench.results import TIMES, Result, Target, shown
from ava_pipeline.contract.files import written_aside
from ava_pipeline.errors import ConfigError
from ava_pipeline.provenance import ask_git, versions
from ava_pipeline.terminal import plain_table
from ava_pipeline.write.channel import TelemetryStats

_TOLD = ("ava-pipeline", "torch", "torchvision", "pyarrow", "pydantic", "numpy", "lightning", "tensorboard", "wandb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole bench.

    Attributes:
        options: what was asked.
        machine: processor, cores and device, in words.
        commit: of the code measured; None outside a git checkout.
        figures: every figure.
        compared: the peers; empty where they were not asked for.
        stats: what became of the steps collected while training, one a spacing.
    """

    options: Options
    machine: str
    commit: str | None
    figures: Sequence[Result]
    compared: Sequence[Compared]
    stats: Sequence[TelemetryStats]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "command": self.options.command(),
            "commit": self.commit,
            "machine": self.machine,
            "measured_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": told_versions(),
            "options": asdict(self.options),
            "figures": [figure.to_json() for figure in self.figures],
            "peers": [one.to_json() for one in self.compared],
            "stats": [asdict(one) for one in self.stats],
        }

    def write(self, path: Path) -> None:
        """Write it as JSON; the file appears complete.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as file:
            file.write(json.dumps(self.to_json(), indent=1, ensure_ascii=False).encode() + b"\n")


def machine(device: torch.device) -> str:
    """This machine in words, without its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    is_virtual = "hypervisor" in _cpu_info("flags").split()
    kind = f"{cores}-core {platform.machine()}{' virtual machine' if is_virtual else ''}"
    what = "CPU" if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    return ", ".join(part for part in (kind, _cpu_info("model name"), platform.system(), what) if part)


def commit() -> str | None:
    """The commit of this code; marked `-dirty` where files differ from it, None outside a git checkout."""
    return ask_git(Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", timeout_s=30)


def told_versions() -> dict[str, str]:
    """Of Python and the libraries that matter."""
    return versions(_TOLD)


def _cpu_info(key: str) -> str:
    """A line of Linux's /proc/cpuinfo, empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


_INFORMATIONAL = "informational"


def show(report: Report, console: Console) -> None:
    """Print everything."""
    console.print(_results_table(report))
    if report.compared:
        console.print()
        console.print(_peers_table(report))
    told = ", ".join(f"{name} {number}" for name, number in told_versions().items())
    where = f"{report.machine}; {told}; commit {report.commit or 'unknown'}\n{report.options.command()}"
    console.print(f"\n{escape(where)}", highlight=False, soft_wrap=True)


def _results_table(report: Report) -> Table:
    table = plain_table("What telemetry costs: medians, with 95 % intervals")
    table.add_column("what", overflow="fold")
    for name in ("measured", "interval", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reached", no_wrap=True)
    for figure in report.figures:
        table.add_row(
            escape(figure.title),
            f"{shown(figure.estimate.value)} {figure.unit}",
            interval(figure),
            target(figure.target),
            reached(figure),
        )
    return table


def _peers_table(report: Report) -> Table:
    table = plain_table("The same work through others: time in the training thread a recorded step")
    table.add_column("what", overflow="fold")
    for name in ("ms", "over ours", "same columns"):
        table.add_column(name, justify="right")
    for one in report.compared:
        table.add_row(escape(one.title), *_measured(one), "yes" if one.has_same_columns else "no")
    return table


def _measured(one: Compared) -> tuple[str, str]:
    if one.record_ms is None or one.times_ours is None:
        return escape(one.missing or "not measured"), ""
    return shown(one.record_ms.value), f"{shown(one.times_ours.value)} {TIMES}"


def interval(figure: Result) -> str:
    """Where the figure lies, or nothing where it was counted."""
    _, low, high = figure.estimate
    return "" if low == high else f"{shown(low)}–{shown(high)}"  # noqa: RUF001  # a range


def target(given: Target | None) -> str:
    """The target in words."""
    if given is None:
        return ""
    return f"{'≥' if given.at_least else '≤'} {given.limit:,g}"


def reached(figure: Result) -> str:
    """Whether the target is."""
    if figure.is_reached is None:
        return _INFORMATIONAL
    return "yes" if figure.is_reached else "no"


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


def _used(figure: Result) -> float:
    if figure.target is None:
        raise TypeError(f"{figure.name} has no target.")
    share = figure.estimate.value / figure.target.limit
    return 1 / share if figure.target.at_least else share
