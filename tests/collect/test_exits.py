"""How the manifest records a process that ends by `sys.exit`, with and without a `with` block."""

import json
from pathlib import Path

import pytest

from ava_pipeline import open_run
from tests.collect.recorded import batches
from tests.scripts import run_script

pytestmark = pytest.mark.timeout(160)

WITHOUT = "telemetry = collector(); train(telemetry, *trained, 3)"
IN_WITH = "with collector() as telemetry: train(telemetry, *trained, 3); "
IN_FUNCTION = """
def main(code):
    telemetry = collector()
    train(telemetry, *trained, 3)
    sys.exit(code)
"""
CAUGHT = """
telemetry = collector()
train(telemetry, *trained, 1)
try:
    sys.exit(3)
except SystemExit:
    pass
train(telemetry, *trained, 2)
"""

# Name -> what the process does, its exit status, and the status and error that the manifest records.
CASES = {
    "without, to the end": (WITHOUT, 0, "finished", None),
    "without, 0": (f"{WITHOUT}; sys.exit(0)", 0, "finished", None),
    "without, nothing": (f"{WITHOUT}; sys.exit()", 0, "finished", None),
    "without, 3": (f"{WITHOUT}; sys.exit(3)", 3, "failed", "SystemExit"),
    "without, text": (f"{WITHOUT}; sys.exit('no data')", 1, "failed", "SystemExit"),
    "with, 0": (f"{IN_WITH}sys.exit(0)", 0, "finished", None),
    "with, 3": (f"{IN_WITH}sys.exit(3)", 3, "failed", "SystemExit"),
    "with, raised": (f"{IN_WITH}raise SystemExit(3)", 3, "failed", "SystemExit"),
    "function, 0": (f"{IN_FUNCTION}\nmain(0)", 0, "finished", None),
    "function, 3": (f"{IN_FUNCTION}\nmain(3)", 3, "failed", "SystemExit"),
    "caught": (CAUGHT, 0, "finished", None),
    "closed before": (f"{WITHOUT}; telemetry.close(); sys.exit(3)", 3, "finished", None),
}

# Importing torch is slow: one process imports it, and each case ends a child of it.
SCRIPT = """
import json, os, sys, warnings
import torch
torch.set_num_threads(1)
from ava_pipeline import TelemetryCollector
from tests.collect.models import tiny, train

warnings.simplefilter("ignore", ResourceWarning)
cases = json.loads(sys.argv[2])
statuses = {}
for name, case in cases.items():
    child = os.fork()
    if child == 0:
        break
    statuses[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
else:
    print(json.dumps(statuses))

if child == 0:
    trained = tiny()
    def collector():
        return TelemetryCollector(*trained, os.path.join(sys.argv[1], name), collect_every_n=1)
    exec(case)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The runs of all cases, and the exit status of each process."""
    root = tmp_path_factory.mktemp("exits")
    scripts = json.dumps({name: case[0] for name, case in CASES.items()})
    statuses: dict[str, int] = json.loads(run_script(SCRIPT, root, scripts).stdout)
    return root, statuses


@pytest.mark.parametrize("name", CASES)
def test_an_exit_is_recorded_by_its_code(ended: tuple[Path, dict[str, int]], name: str) -> None:
    """0 is a normal end and any other code a failure; the exit status is what it would be without telemetry."""
    root, statuses = ended
    _, exit_status, status, error = CASES[name]
    assert statuses[name] == exit_status
    manifest = open_run(root / name).manifest
    assert (manifest.status, manifest.attempt.error) == (status, error)
    assert batches(root / name) == [1, 2, 3]
