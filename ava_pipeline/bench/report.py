"""All that one bench found out, and where: for people and for programs."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ava_pipeline.bench.comparison import Compared
from ava_pipeline.bench.figures import Figure
from ava_pipeline.bench.options import Options
from ava_pipeline.contract.files import written_aside
from ava_pipeline.which_code import ask_git, versions
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
    figures: Sequence[Figure]
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
