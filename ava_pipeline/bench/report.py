"""A whole benchmark: its parts measured in order, and the report as JSON, as a table and as a picture."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ava_pipeline.bench.ends import measure_ends, measure_import, measure_lag
from ava_pipeline.bench.options import BenchContext, Options
from ava_pipeline.bench.peers import Compared, compare
from ava_pipeline.bench.results import TIMES, Result, Target, three_digits
from ava_pipeline.bench.steps import measure_gradients, measure_hand_off, measure_rest
from ava_pipeline.bench.training import measure_fed, measure_training
from ava_pipeline.bench.writing import measure_sustained
from ava_pipeline.contract.files import written_aside
from ava_pipeline.provenance import ask_git, versions
from ava_pipeline.terminal import plain_table
from ava_pipeline.train.optim import pick_device
from ava_pipeline.write.channel import TelemetryStats

_LIBRARIES = (
    "ava-pipeline",
    "torch",
    "torchvision",
    "pyarrow",
    "pydantic",
    "numpy",
    "lightning",
    "tensorboard",
    "wandb",
)
_LEAST_SHARE = 0.01  # the shortest bar of the picture


PARTS: tuple[Callable[[BenchContext], list[Result]], ...] = (
    measure_gradients,
    measure_rest,
    measure_hand_off,
    measure_fed,
    measure_sustained,
    measure_lag,
    measure_ends,
    measure_import,
)
_SECONDS_BETWEEN_UPDATES = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one benchmark measured."""

    options: Options
    machine: str  # processor, cores and device
    commit: str | None  # of the measured code; None outside a git checkout
    results: Sequence[Result]
    compared: Sequence[Compared]  # the peers; empty unless they were requested
    stats: Sequence[TelemetryStats]  # the collector's counters for each value of `collect_every_n`

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "command": self.options.command(),
            "commit": self.commit,
            "machine": self.machine,
            "measured_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": library_versions(),
            "options": asdict(self.options),
            "figures": [result.to_json() for result in self.results],
            "peers": [peer.to_json() for peer in self.compared],
            "stats": [asdict(stats) for stats in self.stats],
        }

    def write(self, path: Path) -> None:
        """Write the report as JSON; the file appears complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as file:
            file.write(json.dumps(self.to_json(), indent=1, ensure_ascii=False).encode() + b"\n")


def measure(options: Options, console: Console) -> Report:
    """Measure everything that the options ask for; raise ConfigError if the device does not exist."""
    where, version = machine(pick_device(options.device)), commit()  # before anything is measured
    # The bar is redrawn between rounds only: a thread that draws would take time from what is measured.
    with TemporaryDirectory(prefix="ava-bench-") as folder, Progress(console=console, auto_refresh=False) as progress:
        context = BenchContext(options, Path(folder), _Tracker(progress))
        results, stats = measure_training(context)
        for part in PARTS:
            results += part(context)
        compared, peer_results = compare(context) if options.peers else ([], [])
    return Report(
        options=options,
        machine=where,
        commit=version,
        results=[*results, *peer_results],
        compared=compared,
        stats=stats,
    )


class _Tracker:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._drawn_s = time.monotonic()

    def __call__(self, num_rounds: int, title: str) -> Iterator[int]:
        task = self._progress.add_task(title, total=num_rounds)
        self._progress.refresh()
        for one in range(num_rounds):
            yield one
            self._progress.advance(task)
            if time.monotonic() - self._drawn_s > _SECONDS_BETWEEN_UPDATES or one == num_rounds - 1:
                self._progress.refresh()
                self._drawn_s = time.monotonic()


def machine(device: torch.device) -> str:
    """Describe this machine, without its host name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    is_virtual = "hypervisor" in _cpu_info("flags").split()
    cpu = f"{cores}-core {platform.machine()}{' virtual machine' if is_virtual else ''}"
    device_name = "CPU" if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    return ", ".join(part for part in (cpu, _cpu_info("model name"), platform.system(), device_name) if part)


def commit() -> str | None:
    """The commit of this code, with `-dirty` if files differ from it; None outside a git checkout."""
    return ask_git(Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", timeout_s=30)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect the results."""
    return versions(_LIBRARIES)


def _cpu_info(key: str) -> str:
    """One entry of Linux's /proc/cpuinfo; empty on other systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def print_report(report: Report, console: Console) -> None:
    """Print the tables of results and peers, and where they were measured."""
    console.print(_results_table(report))
    if report.compared:
        console.print()
        console.print(_peers_table(report))
    libraries = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    where = f"{report.machine}; {libraries}; commit {report.commit or 'unknown'}\n{report.options.command()}"
    console.print(f"\n{escape(where)}", highlight=False, soft_wrap=True)


def _results_table(report: Report) -> Table:
    table = plain_table("What telemetry costs: medians, with 95 % intervals")
    table.add_column("what", overflow="fold")
    for name in ("measured", "interval", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reached", no_wrap=True)
    for result in report.results:
        table.add_row(
            escape(result.title),
            f"{three_digits(result.estimate.value)} {result.unit}",
            _interval_text(result),
            _target_text(result.target),
            _reached_text(result),
        )
    return table


def _peers_table(report: Report) -> Table:
    table = plain_table("The same recording with other tools: time in the training thread per recorded step")
    table.add_column("what", overflow="fold")
    for name in ("ms", "relative", "same columns"):
        table.add_column(name, justify="right")
    for peer in report.compared:
        table.add_row(escape(peer.title), *_peer_cells(peer), "yes" if peer.has_same_columns else "no")
    return table


def _peer_cells(peer: Compared) -> tuple[str, str]:
    if peer.record_ms is None or peer.times_ours is None:
        return escape(peer.missing or "not measured"), ""
    return three_digits(peer.record_ms.value), f"{three_digits(peer.times_ours.value)} {TIMES}"


def _interval_text(result: Result) -> str:
    """The confidence interval; empty for a value that was counted."""
    _, low, high = result.estimate
    return "" if low == high else f"{three_digits(low)}–{three_digits(high)}"  # noqa: RUF001  # a range


def _target_text(target: Target | None) -> str:
    return "" if target is None else f"{'≥' if target.at_least else '≤'} {target.limit:,g}"


def _reached_text(result: Result) -> str:
    return "informational" if result.is_reached is None else "yes" if result.is_reached else "no"


def write_plot(report: Report, path: Path) -> None:
    """Draw the used share of each limit, on a logarithmic scale; raise ValueError if the file's format is unknown."""
    from matplotlib.figure import Figure as Picture  # noqa: PLC0415  # an extra, for this file only

    judged = [result for result in report.results if result.target is not None]
    picture = Picture(figsize=(9, 1 + 0.4 * len(judged)), layout="constrained")
    axes = picture.add_subplot(xscale="log", xlabel="used share of the limit; the target is reached left of the line")
    for place, result in enumerate(reversed(judged)):
        used = max(_used_share(result), _LEAST_SHARE)
        axes.barh(place, used, color="tab:green" if result.is_reached else "tab:red")
        label = f" {three_digits(result.estimate.value)} {result.unit} ({_target_text(result.target)})"
        axes.text(used, place, label, va="center")
    axes.set_yticks(range(len(judged)), [result.title for result in reversed(judged)])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlim(_LEAST_SHARE / 2, 10 * max([1.0, *map(_used_share, judged)]))
    axes.set_title(report.machine, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)


def _used_share(result: Result) -> float:
    if result.target is None:
        raise TypeError(f"{result.name} has no target.")
    share = result.estimate.value / result.target.limit
    return 1 / share if result.target.at_least else share
