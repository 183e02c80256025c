"""A collector at work loads neither pandas nor scipy, which would hold training up when the first rows are written."""

from pathlib import Path

from tests.scripts import run_script

AT_WORK = """
import sys
from pathlib import Path
import torch
import ava_pipeline
from ava_pipeline import TelemetryCollector, recover_run

def heavy():
    return {"pandas", "scipy"} & set(sys.modules)

assert not heavy(), f"import ava_pipeline loads {heavy()}"
run = Path(sys.argv[1])
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for resumed_from in (0, 0, 40):  # a new run; older rows that are superseded; rows behind a checkpoint
    telemetry = TelemetryCollector(model, optimizer, run, collect_every_n=1)
    if resumed_from:
        telemetry.load_state_dict({"batch_idx": resumed_from, "epoch": 0})
    for step in range(60):
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4)).sum() * (float("nan") if step == 7 else 1.0)
        loss.backward()
        optimizer.param_groups[0]["lr"] = -0.1 if step == 3 else 0.1  # a row that is refused
        telemetry.step(values={"loss": loss.detach()}, sample_ids=["a b"])
    assert telemetry.flush()
    assert not heavy(), f"writing loads {heavy()}"
    telemetry.close()
    assert not heavy(), f"finishing the files loads {heavy()}"
recover_run(run)
assert not heavy(), f"recovering loads {heavy()}"
"""


def test_a_collector_at_work_loads_neither_pandas_nor_scipy(tmp_path: Path) -> None:
    """In a fresh interpreter: rows, refused rows, events, signs, Parquet on close, resuming and recovering."""
    run_script(AT_WORK, tmp_path)
    events = (tmp_path / "telemetry" / "events.csv").read_text()
    assert "non_finite" in events
    assert "failed_row" in events
