"""Forked and spawned children: they never write, hold no lock, and end at once; the parent's rows are all there.

Each test runs in its own process. If it takes too long, it and its children dump all their stacks and are killed. It
does not use faulthandler's own deadline: a forked child would wait at its end, for ever, for the thread that watches
the deadline, which stayed with the parent.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ava_pipeline import open_run
from ava_pipeline.validate.validate import validate_run

pytestmark = pytest.mark.timeout(150)

DEADLINE_S = 100

BEGIN = """
import faulthandler, multiprocessing, os, signal, sys
faulthandler.register(signal.SIGUSR1)  # children inherit it
import torch
torch.set_num_threads(1)
from ava_pipeline import TelemetryCollector
from ava_pipeline.errors import MisuseError
from tests.collect.models import backward, tiny

def collector(**settings):
    model, optimizer = tiny()
    return model, TelemetryCollector(model, optimizer, sys.argv[1], collect_every_n=1, **settings)
"""


def ended(script: str, tmp_path: Path) -> list[int]:
    """Run a script; returns the batches that its only attempt left."""
    root = run_script(script, tmp_path)
    assert [str(one) for one in validate_run(root)] == []
    run = open_run(root)
    assert run.manifest.status == "finished"
    assert len(run.manifest.attempts) == 1
    batches: list[int] = run.gradient_norms()["batch_idx"].tolist()
    return batches


def run_script(script: str, tmp_path: Path) -> Path:
    """Run a script as a file, as spawned children need it; returns its run directory."""
    path, root = tmp_path / "script.py", tmp_path / "run"
    path.write_text(BEGIN + script)
    with (tmp_path / "output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, str(path), str(root)],
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
        )
        status = wait(process)
        output.seek(0)
        assert status == 0, output.read().decode()
    return root


def wait(process: "subprocess.Popen[bytes]") -> int | str:
    """The exit status; a process that takes too long dumps its stacks and is killed, and its children with it."""
    try:
        return process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGUSR1)
        time.sleep(2)  # for the stacks to be written, where the test has failed already
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "it took too long"


LOADERS = """
class Images(torch.utils.data.Dataset):
    telemetry = None
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if self.telemetry.step() or self.telemetry.close().collected or not self.telemetry.flush():
            raise RuntimeError("telemetry was at work in a DataLoader worker")
        return torch.zeros(6)

model, telemetry = collector(flush_interval_s=0.001)
Images.telemetry = telemetry
loader = torch.utils.data.DataLoader(
    Images(), batch_size=2, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
)
backward(model)
telemetry.step(0)
for epoch in range(2):
    for images in loader:
        backward(model)
        telemetry.step(epoch)
stats = telemetry.close()
assert stats.written == 9, stats
"""


def test_forked_dataloader_workers_leave_telemetry_alone(tmp_path: Path) -> None:
    """Persistent ones, forked while rows are written: their calls do nothing, and they end with the loader."""
    assert ended(LOADERS, tmp_path) == list(range(1, 10))


LOCKS = """
import tempfile, threading

class Imports:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            raise ImportError(f"the worker imports {name}")

model, telemetry = collector()
backward(model)
tempfile.tempdir = None  # as before its first use, when tempfile takes its lock
tempfile._once_lock.acquire()
sys.meta_path.insert(0, Imports())
telemetry.step(values={"loss": float("nan")})
stats = telemetry.close()
assert stats.written == 1, stats
"""


def test_the_worker_takes_no_lock_that_a_forked_child_would_find_held(tmp_path: Path) -> None:
    """Neither the import system's nor that of `tempfile`, which DataLoader workers and their queues need too."""
    assert ended(LOCKS, tmp_path) == [1]


ORPHAN = """
model, telemetry = collector()
backward(model)
telemetry.step()
telemetry.flush()
ready, done = os.pipe()
child = os.fork()
if child == 0:
    telemetry.close()
    os.write(done, b"x")
    os.read(os.pipe()[0], 1)
os.read(ready, 1)
telemetry.close()
model, again = collector()
again.load_state_dict({"batch_idx": 1, "epoch": 0})
backward(model)
again.step()
stats = again.close()
assert stats.written == 1, stats
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_a_child_that_lives_on_holds_no_lock(tmp_path: Path) -> None:
    """A second collector writes the run while a child of the first one's process is still there."""
    root = run_script(ORPHAN, tmp_path)
    assert open_run(root).gradient_norms()["batch_idx"].tolist() == [1, 2]


OTHERS = """
def child(model):
    backward(model)
    grads = [parameter.grad is not None for parameter in model.parameters()]
    sys.exit(0 if all(grads) else 4)

if __name__ == "__main__":
    context = multiprocessing.get_context("METHOD")
    model, telemetry = collector(flush_interval_s=0.001)
    for _ in range(3):
        backward(model)
        telemetry.step()
    model.zero_grad()
    process = context.Process(target=child, args=(model,))
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode
    try:
        context.Process(target=child, args=(telemetry,)).start()
    except MisuseError as error:
        assert "Pass the model to other processes" in str(error)
    else:
        raise SystemExit("a collector was handed to another process")
    telemetry.close()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_child_gets_the_model_and_never_the_collector(method: str, tmp_path: Path) -> None:
    """The model that telemetry watches can be handed on; the collector is refused with what to do instead."""
    assert ended(OTHERS.replace("METHOD", method), tmp_path) == [1, 2, 3]


FORKING = """
import threading

writing, forked = threading.Event(), threading.Event()
pwrite = os.pwrite

def write_half(descriptor, data, offset):
    if os.getpid() == parent and not writing.is_set():
        done = pwrite(descriptor, data[: len(data) // 2], offset)
        writing.set()
        forked.wait()
        return done
    return pwrite(descriptor, data, offset)

parent = os.getpid()
model, telemetry = collector(flush_interval_s=0.001, fsync=True)
backward(model)
telemetry.step()
telemetry.flush()
os.pwrite = write_half
telemetry.step()
writing.wait()
child = os.fork()
if child == 0:
    os.pwrite = None  # whoever writes now, raises
    backward(model)
    assert not telemetry.step(batch_idx=1)
    assert telemetry.flush()
    with telemetry.val_predictions(0) as predictions:
        predictions.add([1], torch.full((1, 10), 0.1), torch.ones(1, 10))
    telemetry.state_dict()
    assert telemetry.close().collected == 0
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
forked.set()
telemetry.step()
stats = telemetry.close()
assert stats.written == 3, stats
"""


def test_a_fork_in_the_middle_of_a_write_leaves_the_file_to_the_parent(tmp_path: Path) -> None:
    """Half a row is on the disk. The child's calls do nothing and it ends; then the parent continues to write."""
    assert ended(FORKING, tmp_path) == [1, 2, 3]
    assert not (tmp_path / "run" / "predictions").exists()


FORKED_BEFORE = """
model, telemetry = collector()
child = os.fork()
if child == 0:
    telemetry.load_state_dict({"batch_idx": 5, "epoch": 0})
    backward(model)
    assert not telemetry.step(batch_idx=10)
    assert telemetry.close().collected == 0
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert not os.path.exists(sys.argv[1])
backward(model)
telemetry.step()
telemetry.close()
"""


def test_a_child_forked_before_the_first_step_writes_nothing(tmp_path: Path) -> None:
    """Whatever it calls, resuming included."""
    assert ended(FORKED_BEFORE, tmp_path) == [1]


FORKED_IN_BLOCK = """
def add(predictions, image_id):
    predictions.add([image_id], torch.full((1, 10), 0.1), torch.ones(1, 10))

model, telemetry = collector()
backward(model)
telemetry.step()
with telemetry.val_predictions(0) as predictions:
    add(predictions, 1)
    child = os.fork()
    add(predictions, 2 if child else 3)
    if child:
        assert os.waitpid(child, 0)[1] == 0
        assert not os.path.exists(sys.argv[1] + "/predictions")
if child == 0:
    os._exit(0)
telemetry.close()
"""


def test_a_child_forked_in_a_block_of_predictions_leaves_the_file_to_the_parent(tmp_path: Path) -> None:
    """Both come to the end of the block; the file holds what the parent added."""
    assert ended(FORKED_IN_BLOCK, tmp_path) == [1]
    assert open_run(tmp_path / "run").val_predictions(0)["image_id"].tolist() == [1, 2]


FORKED_METRICS = """
model, telemetry = collector()
backward(model)
telemetry.step()
telemetry.log_metrics({"loss": 1.0})
child = os.fork()
telemetry.log_metrics({"loss": 2.0}, epoch=1 if child else 7)
if child == 0:
    telemetry.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
telemetry.close()
"""


def test_a_forked_child_logs_no_metrics(tmp_path: Path) -> None:
    """The rows are those of the parent."""
    assert ended(FORKED_METRICS, tmp_path) == [1]
    assert (tmp_path / "run/metrics.csv").read_text() == "epoch,loss\n0,1.0\n1,2.0\n"


TROUBLED = """
from pathlib import Path
from ava_pipeline.errors import WriteError

Path(sys.argv[1]).touch()
model, telemetry = collector(on_error="raise")
backward(model)
telemetry.step()
telemetry._recorder._channel.flush(20)
child = os.fork()
if child == 0:
    assert telemetry.flush()
    telemetry.state_dict()
    telemetry.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
try:
    telemetry.close()
except WriteError:
    sys.exit(0)
sys.exit("nothing was raised in the parent")
"""


def test_the_parents_trouble_is_raised_in_the_parent_alone(tmp_path: Path) -> None:
    """A DataLoader worker can do nothing about it."""
    run_script(TROUBLED, tmp_path)


FORKING_OFTEN = """
model, telemetry = collector(flush_interval_s=0.0001, fsync=True)
backward(model)
children = []
for _ in range(12):
    for _ in range(5):
        telemetry.step()
    child = os.fork()
    if child == 0:
        telemetry.step()
        telemetry.flush()
        telemetry.close()
        os._exit(0)  # torch takes a second to end as programs do; the child above does
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
stats = telemetry.close()
assert stats.written == 60, stats
"""


def test_forks_at_any_moment_of_writing_end_and_cost_no_row(tmp_path: Path) -> None:
    """While the worker begins the run, writes, syncs and logs: no lock that a child needs stays held."""
    assert ended(FORKING_OFTEN, tmp_path) == list(range(1, 61))
