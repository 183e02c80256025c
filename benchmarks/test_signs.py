"""The cost of checking for signs while training."""

import time
from pathlib import Path

import numpy as np
import pytest

from ava_pipeline.bench.results import Target
from ava_pipeline.bench.writing import TABLES, WrittenRun
from ava_pipeline.write import online_signs
from benchmarks.judging import Bench, Sizes

SHARE = Target(0.05)


@pytest.mark.gate
def test_signs_over_writing(bench: Bench, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time of the checks, relative to that of a process that writes rows at full speed."""
    looks_s: list[float] = []
    judge = online_signs.OnlineSigns._check_rows  # noqa: SLF001  # times the checks alone, wherever they are called from

    def timed(watch: online_signs.OnlineSigns) -> None:
        start_s = time.thread_time()
        judge(watch)
        looks_s.append(time.thread_time() - start_s)

    monkeypatch.setattr(online_signs.OnlineSigns, "_check_rows", timed)

    def write() -> float:
        looks_s.clear()
        start_s = time.process_time()
        with WrittenRun(tmp_path / f"run-{time.monotonic_ns()}") as run:
            run.offer(range(1, sizes.num_rows + 1))
        return time.process_time() - start_s

    write()
    spent_s = bench.show(write)
    bench.note({"looks": len(looks_s), "rows": sizes.num_rows, "tables": len(TABLES), "look_s": float(np.sum(looks_s))})
    bench.judge(float(np.sum(looks_s)) / spent_s, SHARE, name="share")
