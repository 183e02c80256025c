"""Gradient and learning-rate telemetry for PyTorch training, developed for AVA aesthetic score prediction.

    from ava_pipeline import TelemetryCollector, open_run

    with TelemetryCollector(model, optimizer, "outputs/ava/my_run") as telemetry:
        for images, votes in train_loader:
            ...
            loss.backward()
            telemetry.step(epoch)      # after backward, before clipping and optimizer.step
            optimizer.step()
    open_run("outputs/ava/my_run").gradient_norms()      # a pandas DataFrame

Every public name is in `__all__` and is imported when it is first used. Therefore `import ava_pipeline` loads no other
library, and reading a run does not need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ava_pipeline.errors import (
    AvaPipelineError,
    ChannelClosedError,
    ChannelFullError,
    CheckpointError,
    ConfigError,
    DamagedFileError,
    DataError,
    GroupsError,
    ImagesError,
    LabelsError,
    MisuseError,
    NonFiniteLossError,
    NotARunError,
    PredictionsError,
    RunError,
    RunExistsError,
    RunInUseError,
    SplitError,
    TelemetryError,
    TrainingError,
    WriteError,
)

if TYPE_CHECKING:
    from ava_pipeline.collect.collector import TelemetryCollector
    from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
    from ava_pipeline.collect.targets import TrainingTargets
    from ava_pipeline.collect.undisturbed import in_holdout
    from ava_pipeline.compare.compare import Comparison, compare_runs
    from ava_pipeline.config.models import RunConfig, TelemetryConfig
    from ava_pipeline.contract.columns import Column
    from ava_pipeline.contract.events import Event
    from ava_pipeline.contract.finding import Finding
    from ava_pipeline.contract.tables import KEY_COLUMNS, Table
    from ava_pipeline.diagnose.diagnose import Diagnosis, diagnose_run
    from ava_pipeline.evaluation.evaluate import Evaluation, evaluate
    from ava_pipeline.many_runs.datasets import Runs, runs
    from ava_pipeline.read.run import Run, open_run
    from ava_pipeline.report.page import write_report
    from ava_pipeline.train.data.labels import read_ava_labels
    from ava_pipeline.validate.validate import validate_run
    from ava_pipeline.write.channel import TelemetryStats
    from ava_pipeline.write.recover import Recovery, recover_run
    from ava_pipeline.write.writers import Writer


__version__ = "0.1.0"

# The module of each public name that is imported when it is first used.
_MODULES = {
    "Column": "ava_pipeline.contract.columns",
    "Comparison": "ava_pipeline.compare.compare",
    "Diagnosis": "ava_pipeline.diagnose.diagnose",
    "Evaluation": "ava_pipeline.evaluation.evaluate",
    "Event": "ava_pipeline.contract.events",
    "Finding": "ava_pipeline.contract.finding",
    "KEY_COLUMNS": "ava_pipeline.contract.tables",
    "Measure": "ava_pipeline.collect.measures.measure",
    "Reading": "ava_pipeline.collect.measures.measure",
    "Recovery": "ava_pipeline.write.recover",
    "Run": "ava_pipeline.read.run",
    "RunConfig": "ava_pipeline.config.models",
    "Runs": "ava_pipeline.many_runs.datasets",
    "StepSnapshot": "ava_pipeline.collect.measures.measure",
    "Table": "ava_pipeline.contract.tables",
    "TelemetryCollector": "ava_pipeline.collect.collector",
    "TelemetryConfig": "ava_pipeline.config.models",
    "TelemetryStats": "ava_pipeline.write.channel",
    "TrainingTargets": "ava_pipeline.collect.targets",
    "Writer": "ava_pipeline.write.writers",
    "compare_runs": "ava_pipeline.compare.compare",
    "diagnose_run": "ava_pipeline.diagnose.diagnose",
    "evaluate": "ava_pipeline.evaluation.evaluate",
    "in_holdout": "ava_pipeline.collect.undisturbed",
    "open_run": "ava_pipeline.read.run",
    "read_ava_labels": "ava_pipeline.train.data.labels",
    "recover_run": "ava_pipeline.write.recover",
    "runs": "ava_pipeline.many_runs.datasets",
    "validate_run": "ava_pipeline.validate.validate",
    "write_report": "ava_pipeline.report.page",
}

__all__ = [
    "KEY_COLUMNS",
    "AvaPipelineError",
    "ChannelClosedError",
    "ChannelFullError",
    "CheckpointError",
    "Column",
    "Comparison",
    "ConfigError",
    "DamagedFileError",
    "DataError",
    "Diagnosis",
    "Evaluation",
    "Event",
    "Finding",
    "GroupsError",
    "ImagesError",
    "LabelsError",
    "Measure",
    "MisuseError",
    "NonFiniteLossError",
    "NotARunError",
    "PredictionsError",
    "Reading",
    "Recovery",
    "Run",
    "RunConfig",
    "RunError",
    "RunExistsError",
    "RunInUseError",
    "Runs",
    "SplitError",
    "StepSnapshot",
    "Table",
    "TelemetryCollector",
    "TelemetryConfig",
    "TelemetryError",
    "TelemetryStats",
    "TrainingError",
    "TrainingTargets",
    "WriteError",
    "Writer",
    "compare_runs",
    "diagnose_run",
    "evaluate",
    "in_holdout",
    "open_run",
    "read_ava_labels",
    "recover_run",
    "runs",
    "validate_run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ava_pipeline' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
