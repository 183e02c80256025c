"""The size of the benchmarks, and the fixtures that they share."""

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ava_pipeline.bench.options import Options
from ava_pipeline.bench.workload import Workload
from benchmarks.judging import Bench, Sizes

TINY = Sizes(is_tiny=True, model="resnet18", num_rounds=2, num_rows=1_000, num_validated_rows=2_000, num_labels=2_000)


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    """Full size, or with AVA_BENCH_SIZE=tiny a size that only shows that everything runs."""
    given = os.environ.get("AVA_BENCH_SIZE", "full")
    if given not in {"full", "tiny"}:
        raise pytest.UsageError(f"AVA_BENCH_SIZE is {given!r}; expected full or tiny.")
    return TINY if given == "tiny" else Sizes()


@pytest.fixture
def bench(benchmark: BenchmarkFixture, sizes: Sizes) -> Bench:
    """Times work in turn and compares the result with its target."""
    return Bench(benchmark, sizes)


@pytest.fixture(scope="session")
def workload(sizes: Sizes) -> Workload:
    """The AVA model on the CPU after a backward pass."""
    found = Workload(Options(model=sizes.model, device="cpu", image_size=32, batch_size=2))
    found.backward()
    return found
