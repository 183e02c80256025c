"""How a benchmark measures time and memory: clocks that wait for the device, warm-up, rounds in random order."""

import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Samples: TypeAlias = NDArray[np.float64]
Work: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[Work], float]

NUM_WARMUP = 3


def clock_for(device: "torch.device") -> Clock:
    """Return a clock, in seconds, that waits until work on the device has finished."""
    return host_s if device.type == "cpu" else _DeviceClock(device)


def host_s(work: Work) -> float:
    """Measure how long `work` blocks the calling thread, in seconds."""
    start_s = perf_counter()
    work()
    return perf_counter() - start_s


def interleaved(works: Mapping[str, Work], rounds: Iterable[int], clock: Clock = host_s) -> dict[str, Samples]:
    """Time all work once per round in random order, so that load hits it equally; return name -> seconds per round."""
    draw = np.random.default_rng(0)
    for work in [*works.values()] * NUM_WARMUP:
        work()
    times_s: dict[str, list[float]] = {name: [] for name in works}
    for _ in rounds:
        for name in draw.permutation(list(works)):
            times_s[name].append(clock(works[name]))
    return {name: np.array(values) for name, values in times_s.items()}  # the same index is the same round


def peak_bytes() -> int:
    """The peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage includes the parent process
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _DeviceClock:
    """Times work with two events on the accelerator's current stream, while nothing else runs on it."""

    def __init__(self, device: "torch.device") -> None:
        import torch  # noqa: PLC0415  # the memory of a process without torch is measured too

        self._module = torch.get_device_module(device)

    def __call__(self, work: Work) -> float:
        start, end = (self._module.Event(enable_timing=True) for _ in range(2))
        self._module.synchronize()
        start.record()
        work()
        end.record()
        self._module.synchronize()
        return float(start.elapsed_time(end)) / 1e3
