"""A newer collector of the same process takes a run directory over from an older one, as in a notebook."""

from pathlib import Path

import pandas as pd
import pytest

from ava_pipeline import TelemetryCollector, TelemetryStats, open_run
from ava_pipeline.errors import MisuseError
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.writers import ParquetWriter
from tests.collect.models import tiny, train
from tests.collect.recorded import batches
from tests.scripts import run_script
from tests.write.test_worker import Gate

pytestmark = pytest.mark.timeout(160)

SOON_S = 25.0

NOTEBOOK = """
import code, sys
import torch
torch.set_num_threads(1)
from ava_pipeline import TelemetryCollector
from tests.collect.models import backward, tiny

cell = '''
model, optimizer = tiny()
telemetry = TelemetryCollector(model, optimizer, root, collect_every_n=1, flush_interval_s=1e6)
for batch in range(1, 7):
    backward(model, batch)
    telemetry.step()
    if batch == last:
        raise KeyboardInterrupt
'''
names = {**globals(), "root": sys.argv[1]}
notebook = code.InteractiveInterpreter(names)
for last in (4, 2, None):
    names["last"] = last
    notebook.runsource(cell, symbol="exec")
names["telemetry"].close()
"""


def superseded(root: Path, attempt: int) -> list[int]:
    """The batches whose rows an attempt replaced."""
    rows = pd.read_csv(root / "telemetry" / "superseded" / f"attempt-{attempt}" / "gradient_norms.csv")
    return [int(batch) for batch in rows["batch_idx"]]


def test_a_cell_that_is_run_again_after_an_interrupt_loses_no_row(tmp_path: Path) -> None:
    """Each interrupted attempt is recorded as such, its rows are kept, and the last one's are in the tables."""
    run_script(NOTEBOOK, tmp_path)
    assert batches(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [superseded(tmp_path, attempt) for attempt in (2, 3)] == [[1, 2, 3, 4], [1, 2]]
    attempts = open_run(tmp_path).manifest.attempts
    assert [attempt.status for attempt in attempts] == ["interrupted", "interrupted", "finished"]
    assert [attempt.counters.written for attempt in attempts] == [4, 2, 6]
    assert open_run(tmp_path).events().empty
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_the_older_collector_refuses_steps_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are in use, one by a relative path: the newer one continues, and what the older one wrote is counted."""
    model, optimizer = tiny()
    older = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    train(older, model, optimizer, 3)
    monkeypatch.chdir(tmp_path.parent)
    newer = TelemetryCollector(model, optimizer, tmp_path.name, collect_every_n=1)
    newer.load_state_dict(older.state_dict())
    for accumulating in (False, True):
        with pytest.raises(MisuseError, match=r"newer collector of this process took over .* an output directory"):
            older.step(accumulating=accumulating)
    train(newer, model, optimizer, 2)
    assert older.close() == TelemetryStats(collected=3, written=3)
    assert newer.close() == TelemetryStats(collected=2, written=2)
    assert batches(tmp_path) == [1, 2, 3, 4, 5]
    assert [one.status for one in open_run(tmp_path).manifest.attempts] == ["interrupted", "finished"]


def test_steps_do_not_wait_for_the_older_collectors_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker finishes them first; meanwhile rows wait, and `close` says for what."""
    gate = Gate(monkeypatch, ParquetWriter, "close")
    model, optimizer = tiny()
    older = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    train(older, model, optimizer, 3)
    assert older.flush(SOON_S)
    newer = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    train(newer, model, optimizer, 4)
    assert gate.reached.wait(SOON_S)
    assert not newer.flush(0.01)
    assert newer.stats() == TelemetryStats(collected=4, pending=4)
    gate.opened.set()
    assert newer.close() == TelemetryStats(collected=4, written=4)
    assert batches(tmp_path) == [1, 2, 3, 4]
    assert superseded(tmp_path, 2) == [1, 2, 3]


@pytest.mark.parametrize(("output_dir", "enabled"), [("run", False), ("other", True)])
def test_only_a_collector_that_writes_there_takes_over(tmp_path: Path, output_dir: str, enabled: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """One that records nothing, or elsewhere, leaves the older one alone."""
    model, optimizer = tiny()
    older = TelemetryCollector(model, optimizer, tmp_path / "run", collect_every_n=1)
    with older, TelemetryCollector(model, optimizer, tmp_path / output_dir, collect_every_n=1, enabled=enabled):
        train(older, model, optimizer, 2)
    assert batches(tmp_path / "run") == [1, 2]
    assert open_run(tmp_path / "run").manifest.status == "finished"
