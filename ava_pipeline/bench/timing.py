"""How long pieces of work take: side by side in one run, in random order."""

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
    """A clock that takes work on the device in full, in seconds."""
    return host_s if device.type == "cpu" else _DeviceClock(device)


def host_s(work: Work) -> float:
    """How long the calling thread is held up, in seconds."""
    start_s = perf_counter()
    work()
    return perf_counter() - start_s


def interleaved(works: Mapping[str, Work], rounds: Iterable[int], clock: Clock = host_s) -> dict[str, Samples]:
    """Time every work once a round, in an order drawn anew each round, so that other load hits all alike.

    Args:
        works: by name.
        rounds: one round each; a few more go before them, untimed.
        clock: takes the time.

    Returns:
        Seconds by name, a number a round: those at one place are of the same round.
    """
    draw = np.random.default_rng(0)
    for work in [*works.values()] * NUM_WARMUP:
        work()
    times_s: dict[str, list[float]] = {name: [] for name in works}
    for _ in rounds:
        for name in draw.permutation(list(works)):
            times_s[name].append(clock(works[name]))
    return {name: np.array(of_it) for name, of_it in times_s.items()}


class _DeviceClock:
    """Two events on the device's current stream around the work, with nothing else under way.

    Args:
        device: an accelerator.
    """

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
