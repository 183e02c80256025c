"""How a benchmark measures time: clocks that wait for the device, warm-up, and rounds in random order."""

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Samples: TypeAlias = NDArray[np.float64]
Work: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[Work], float]

NUM_WARMUP = 3


def clock_for(device: torch.device) -> Clock:
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


class _DeviceClock:
    """Times work with two events on the accelerator's current stream, while nothing else runs on it."""

    def __init__(self, device: torch.device) -> None:
        self._module = torch.get_device_module(device)

    def __call__(self, work: Work) -> float:
        start, end = (self._module.Event(enable_timing=True) for _ in range(2))
        self._module.synchronize()
        start.record()
        work()
        end.record()
        self._module.synchronize()
        return float(start.elapsed_time(end)) / 1e3
