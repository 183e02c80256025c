"""Write small runs with this version: `python -m tests.golden.make` fills tests/golden/v<schema version>.

Existing runs are kept: older code wrote them, and readers must still read them.
"""

import os
import platform
import shutil
import signal
import sys
from contextlib import chdir
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.contract.tables import SCHEMA_VERSION
from ava_pipeline.validate.validate import validate_run
from tests.train import small_runs
from tests.validate.real_run import SmallModel, record

FOLDER = Path(__file__).parent
_TORN_BYTES = 7


def attempt(root: Path, num_batches: int, *, resumed_from: int = 0, is_killed: bool = False, **settings: Any) -> None:
    """Train a small model from a batch on, then close or be killed."""
    sys.argv = ["train.py"]
    torch.manual_seed(resumed_from)
    model = SmallModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with _anywhere():
        telemetry = TelemetryCollector(model, optimizer, root, collect_every_n=2, **settings)
        if resumed_from:
            telemetry.load_state_dict({"batch_idx": resumed_from, "epoch": 0})
        for _ in range(num_batches):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 6)).log_softmax(dim=1).square().mean()
            loss.backward()
            telemetry.step(0, values={"loss": loss})
            optimizer.step()
        telemetry.flush()
        if is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        telemetry.close()


def finished(root: Path) -> None:
    """Three epochs with predictions."""
    sys.argv = ["train.py"]
    with _anywhere():
        record(root, run_info={"note": "golden"})


def csv_alone(root: Path) -> None:
    """A run without Parquet."""
    sys.argv = ["train.py"]
    with _anywhere():
        record(root, formats=("csv",))


def trained(root: Path) -> None:
    """A run of `ava-pipeline train`, its checkpoint left out for its size."""
    sys.argv = ["ava-pipeline", "train", "small.yaml"]
    with TemporaryDirectory() as folder, chdir(folder), _anywhere():
        small_runs.run(Path())
        shutil.rmtree("run/checkpoints")
        shutil.copytree("run", root)


def resumed(root: Path) -> None:
    """Killed at batch 12 and resumed after batch 6: three rows are superseded."""
    _in_a_process(root, num_batches=12, is_killed=True)
    _in_a_process(root, num_batches=8, resumed_from=6)


def crashed(root: Path) -> None:
    """Killed, with its rows in journals and incomplete last lines in its CSV files."""
    _in_a_process(root, num_batches=12, is_killed=True)
    for path in sorted((root / "telemetry").glob("*.csv")):
        os.truncate(path, path.stat().st_size - _TORN_BYTES)


def changed_columns(root: Path) -> None:
    """Resumed with one group removed and another added."""
    _in_a_process(root, num_batches=8, groups={"first": "backbone.0.*", "second": "backbone.2.*"})
    _in_a_process(root, num_batches=8, resumed_from=8, groups={"first": "backbone.0.*", "last": "mlp_head.3.*"})


RUNS = (finished, resumed, crashed, changed_columns, csv_alone, trained)


def _in_a_process(root: Path, **arguments: Any) -> None:
    process = get_context("spawn").Process(target=attempt, args=(root,), kwargs=arguments)
    process.start()
    process.join()
    expected = -signal.SIGKILL if arguments.get("is_killed") else 0
    if process.exitcode != expected:
        raise RuntimeError(f"The training ended with {process.exitcode}, not {expected}.")


def _anywhere() -> Any:
    """Keep the name of this machine out of the files."""
    return mock.patch.object(platform, "node", return_value="example")


def main(folder: Path = FOLDER / f"v{SCHEMA_VERSION}") -> None:
    """Write the runs that are missing."""
    for make in RUNS:
        root = folder / make.__name__
        if not root.exists():
            make(root)
            _check(root)


def _check(root: Path) -> None:
    """Refuse a run in which something went wrong."""
    problems = [one for one in validate_run(root) if one.severity == "error"]
    dropped = [one.counters for one in open_run(root).manifest.attempts if one.counters.dropped or one.counters.failed]
    if problems or dropped:
        raise RuntimeError(f"{root} is no sound run: {[*map(str, problems), *dropped]}. Delete it.")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
