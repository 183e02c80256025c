"""A soak test of seconds passes, and finds what is broken."""

from pathlib import Path

import pytest

from tests.scripts import run_script
from tests.soak.checks import broken_files
from tests.write.feeding import Room

pytestmark = pytest.mark.timeout(120)

# The command forks, so it gets a process without the threads of other tests.
SOAK = """
import sys
from pathlib import Path
from tests.soak.__main__ import soak

broken, counts = soak(Path(sys.argv[1]), 2.0, 5)
assert not broken, broken
assert counts["batches"] > 0 and counts["lives"] > 0, counts
"""


def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    """After two seconds of faults and kills, every batch is written or covered by an event."""
    run_script(SOAK, tmp_path, deadline_s=100)


def test_a_batch_that_is_neither_written_nor_named_is_found(tmp_path: Path) -> None:
    """A check that finds nothing in a broken run would be worthless."""
    room = Room(tmp_path)
    room.write([1, 2, 4])
    room.close()
    found = broken_files([tmp_path], 5)
    assert [("norms.csv" in one, "lacks 2 batches from 3" in one) for one in found] == [(True, True), (False, True)]
