"""A sparse file that claims gigabytes, met by a process that may take little memory."""

from pathlib import Path

import pytest

from ava_pipeline.contract.layout import RunLayout
from tests.scripts import run_script
from tests.validate.building import RunBuilder

pytestmark = pytest.mark.timeout(120)

READING = """
import resource, sys
from pathlib import Path

from ava_pipeline.errors import DamagedFileError
from ava_pipeline.write.recover import recover_run
from tests.write.feeding import NORMS, PlainMeasure, Room

LIMIT_BYTES = 400 * 2**20


def write(root):
    room = Room(root, resumed_from=120, measure=PlainMeasure(NORMS.model_copy(update={"name": "steps"})))
    room.write([121])
    room.close()


ACTS = {
    "dry": lambda root: recover_run(root, dry_run=True),
    "recover": recover_run,
    "write": write,
}
root, *acts = Path(sys.argv[1]), *sys.argv[2:]
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT_BYTES, taken + LIMIT_BYTES))
for act in acts:
    try:
        ACTS[act](root)
    except DamagedFileError as error:
        print("refused:", error)
    else:
        print("done")
"""


def outcomes(root: Path, *acts: str) -> list[str]:
    """How each act ends in a process that may take 400 MiB more."""
    return run_script(READING, root, *acts, deadline_s=100).stdout.splitlines()


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A finished run."""
    return RunLayout(RunBuilder(root=tmp_path / "run").write())


@pytest.mark.parametrize("acts", [("dry", "recover"), ("write",)], ids=str)
def test_a_csv_that_claims_ten_gigabytes_in_a_line_is_moved_unread(acts: tuple[str, ...], layout: RunLayout) -> None:
    """It is kept in `damaged/`, and its bytes are not copied."""
    with layout.csv("steps").open("r+b") as file:
        file.truncate(10 * 2**30)
    assert set(outcomes(layout.root, *acts)) == {"done"}
    assert (layout.damaged / "steps.csv").exists()
