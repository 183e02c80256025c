"""One process that writes a run while its disk fails, and reports at the end what is broken."""

import faulthandler
import gc
import json
import os
import random
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import ChannelFullError
from ava_pipeline.write.channel import TelemetryStats
from tests.soak.faults import Faults
from tests.write.feeding import Room, step

MAX_PENDING = 256
BATCHES_PER_FLUSH = 100
PACE_S = 0.001
SOON_S = 30.0
MAX_GROWN_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Life:
    """The task of one process.

    Attributes:
        root: the run directory.
        resumed_from: the last batch known to be written.
        life_s: how long it writes.
        seed: of its faults.
        kinds: of faults; empty for none.
    """

    root: Path
    resumed_from: int
    life_s: float
    seed: int
    kinds: tuple[str, ...]


def begin(life: Life) -> tuple[int, int]:
    """Fork a process that carries out this task.

    Returns:
        Its pid, and a descriptor to read its report: a JSON object per line.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    faulthandler.register(signal.SIGALRM, chain=True)  # a life that hangs says where, and ends
    signal.alarm(int(life.life_s + 3 * SOON_S))
    try:
        _live(life, writing)
    except BaseException:  # noqa: BLE001  # reported, so that the reader of the pipe can print it
        _report(writing, broken=[traceback.format_exc()])
    os._exit(0)


def _live(life: Life, pipe: int) -> None:
    room = Room(life.root, resumed_from=life.resumed_from, max_pending=MAX_PENDING, retry_s=0.05)
    faults = Faults(life.root, random.Random(life.seed), life.kinds)  # noqa: S311  # it hides nothing
    room.worker.start()
    broken: list[str] = []
    ends_s, warm_s = time.monotonic() + life.life_s, time.monotonic() + life.life_s / 4
    before: tuple[int, int] | None = None
    for batch in count(life.resumed_from + 1):
        if life.kinds:
            faults.turn()
        with suppress(ChannelFullError):  # counted, and reported as a gap
            room.offer(step(batch))
        if batch % BATCHES_PER_FLUSH == 0 and faults.active is None and room.channel.flush(SOON_S):
            broken += _unbalanced(room.channel.stats())
            if room.files.is_open and time.monotonic() >= ends_s:
                break
            # A failure that is not reported yet would be lost with this process.
            if room.files.is_open and not len(room.log._queue):
                _report(pipe, flushed=batch)
            if room.files.is_open and before is None and time.monotonic() >= warm_s:
                before = _held()
        time.sleep(PACE_S)
    faults.end()
    stats = room.worker.close(SOON_S, "finished")
    broken += _unbalanced(stats, at_the_end=True) + _not_in_manifest(room, stats) + _grown(before)
    _report(pipe, last=batch, stats=asdict(stats), faults=dict(faults.counts), broken=broken)


def _report(pipe: int, **facts: Any) -> None:
    os.write(pipe, json.dumps(facts).encode() + b"\n")


def _unbalanced(stats: TelemetryStats, *, at_the_end: bool = False) -> list[str]:
    is_balanced = stats.collected == stats.written + stats.dropped + stats.failed + stats.pending
    is_bounded = stats.pending <= (0 if at_the_end else MAX_PENDING)
    return [] if is_balanced and is_bounded else [f"the counters do not add up: {stats}"]


def _not_in_manifest(room: Room, stats: TelemetryStats) -> list[str]:
    """A run that was moved away continues in another attempt, which counts only its own steps."""
    counted = read_manifest(room.layout.manifest).attempt.counters
    given = TelemetryStats(**counted.model_dump())
    if _unbalanced(given, at_the_end=True) or given.collected > stats.collected:
        return [f"the manifest counts {given}, the process {stats}"]
    return []


def _held() -> tuple[int, int]:
    """Resident memory in bytes, and the number of open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir()))


def _grown(before: tuple[int, int] | None) -> list[str]:
    """What grew since `before`. Files are closed by now, so there must be fewer."""
    if before is None:
        return []
    grown_bytes, grown_files = (after - one for after, one in zip(_held(), before, strict=True))
    grown = [f"memory grew by {grown_bytes} bytes"] if grown_bytes > MAX_GROWN_BYTES else []
    return grown + ([f"{grown_files} more files are open than before"] if grown_files >= 0 else [])
