"""Gradient and learning-rate telemetry for PyTorch training, at home in AVA aesthetic score prediction.

Everything public stands in `__all__` and is imported when it is first used, so that `import ava_pipeline` costs next
to nothing and reading a run needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ava_pipeline.collect.collector import TelemetryCollector
    from ava_pipeline.config.models import RunConfig, TelemetryConfig
    from ava_pipeline.contract.finding import Finding
    from ava_pipeline.diagnose.diagnose import Diagnosis, diagnose_run
    from ava_pipeline.many_runs.datasets import Runs, runs
    from ava_pipeline.read.run import Run, open_run
    from ava_pipeline.train.data.labels import read_ava_labels
    from ava_pipeline.write.channel import TelemetryStats


__version__ = "0.1.0"

_HOMES = {
    "Diagnosis": "ava_pipeline.diagnose.diagnose",
    "Finding": "ava_pipeline.contract.finding",
    "Run": "ava_pipeline.read.run",
    "RunConfig": "ava_pipeline.config.models",
    "Runs": "ava_pipeline.many_runs.datasets",
    "TelemetryCollector": "ava_pipeline.collect.collector",
    "TelemetryConfig": "ava_pipeline.config.models",
    "TelemetryStats": "ava_pipeline.write.channel",
    "diagnose_run": "ava_pipeline.diagnose.diagnose",
    "open_run": "ava_pipeline.read.run",
    "read_ava_labels": "ava_pipeline.train.data.labels",
    "runs": "ava_pipeline.many_runs.datasets",
}

__all__ = [
    "Diagnosis",
    "Finding",
    "Run",
    "RunConfig",
    "Runs",
    "TelemetryCollector",
    "TelemetryConfig",
    "TelemetryStats",
    "diagnose_run",
    "open_run",
    "read_ava_labels",
    "runs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ava_pipeline' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
