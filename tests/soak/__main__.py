"""`python -m tests.soak --duration-s 600`: exit status 0 if nothing broke, else 1 with a list."""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ava_pipeline.validate.validate import validate_run
from tests.soak.checks import broken_files
from tests.soak.faults import KINDS
from tests.soak.feeder import Life, begin

# A run that is resumed must find its rows where they were, so that its directory does not vanish.
_KINDS_OF_RESUMED = tuple(kind for kind in KINDS if kind != "vanished")
_SHARE_KILLED = 0.7


def soak(folder: Path, duration_s: float, seed: int) -> tuple[list[str], Counter[str]]:
    """Write a run in one long process, and beside it another in many short processes, most of them killed.

    Args:
        folder: for the two runs; new.
        duration_s: how long to write.
        seed: of the faults and their order; their times depend on the machine.

    Returns:
        What broke, and counts of what happened.
    """
    moments = random.Random(seed)  # noqa: S311  # it hides nothing
    counts: Counter[str] = Counter()
    ends_s = time.monotonic() + duration_s
    steady = Life(folder / "steady", 0, duration_s, moments.getrandbits(32), KINDS)
    pid, reading = begin(steady)
    broken = _short_lives(folder / "killed", ends_s, moments, counts)
    report = _report(pid, reading)
    broken += [f"steady: {one}" for one in report.get("broken", ["it ended without a word"])]
    counts.update(report.get("faults", {}))
    counts["batches"] += report.get("last", 0)
    broken += broken_files(sorted(folder.glob("steady*")), report.get("last", 0))
    broken += [str(one) for one in validate_run(steady.root)]
    return broken, counts


def _short_lives(root: Path, ends_s: float, moments: random.Random, counts: Counter[str]) -> list[str]:
    last = 0
    broken: list[str] = []
    while time.monotonic() < ends_s and not broken:
        life = Life(root, last, moments.uniform(0.2, 4), moments.getrandbits(32), _KINDS_OF_RESUMED)
        pid, reading = begin(life)
        if moments.random() < _SHARE_KILLED:
            time.sleep(life.life_s * moments.random())
            os.kill(pid, signal.SIGKILL)
            counts["killed"] += 1
        report = _report(pid, reading)
        last = report.get("last", report.get("flushed", last))
        counts.update(lives=1, **report.get("faults", {}))
        broken += [f"killed, seed {life.seed}: {one}" for one in report.get("broken", [])] + broken_files([root], last)
    report = _report(*begin(Life(root, last, 0.0, 0, ())))
    counts["batches"] += report.get("last", 0)
    return [*broken, *report.get("broken", ["the last life ended without a word"]), *map(str, validate_run(root))]


def _report(pid: int, reading: int) -> dict[str, Any]:
    """Wait for a process to end, and return the latest value of everything it reported."""
    with os.fdopen(reading) as lines:
        lines_read = [json.loads(line) for line in lines if line.endswith("\n")]
    os.waitpid(pid, 0)
    return {key: value for one in lines_read for key, value in one.items()}


def main() -> None:
    """Run the soak test for the given time."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--duration-s", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.duration_s:g} s", flush=True)  # noqa: T201  # a command prints
    folder = Path(tempfile.mkdtemp(prefix="ava-soak-"))
    broken, counts = soak(folder, options.duration_s, options.seed)
    print(", ".join(f"{name} {number}" for name, number in sorted(counts.items())))  # noqa: T201  # a command prints
    for one in broken:
        print(f"broken: {one}")  # noqa: T201  # a command prints
    print(f"the runs are kept in {folder}")  # noqa: T201  # a command prints
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
