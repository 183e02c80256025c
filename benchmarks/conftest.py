"""How large benchmarks are, and how a gate is judged."""

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ava_pipeline.bench.command import Options
from ava_pipeline.bench.workload import Workload
from benchmarks.judging import Bench, Sizes

TINY = Sizes(is_tiny=True, model="resnet18", num_rounds=2, num_rows=1_000, num_validated_rows=2_000, num_labels=2_000)


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    """Full, or with AVA_BENCH_SIZE=tiny only to see that all of it runs."""
    given = os.environ.get("AVA_BENCH_SIZE", "full")
    if given not in {"full", "tiny"}:
        raise pytest.UsageError(f"AVA_BENCH_SIZE is {given!r}; use full or tiny.")
    return TINY if given == "tiny" else Sizes()


@pytest.fixture
def bench(benchmark: BenchmarkFixture, sizes: Sizes) -> Bench:
    """Times works in turn and judges what comes of it."""
    return Bench(benchmark, sizes)


@pytest.fixture(scope="session")
def workload(sizes: Sizes) -> Workload:
    """The AVA model on the CPU, behind a backward pass."""
    found = Workload(Options(model=sizes.model, device="cpu", image_size=32, batch_size=2))
    found.backward()
    return found
