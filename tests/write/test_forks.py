"""Forks at any line of the background thread: a child finds no lock that is never released."""

from pathlib import Path

import pytest

from tests.scripts import ROOT, run_script

pytestmark = pytest.mark.timeout(150)

# The worker thread stops at lines that it reaches for the first time, and the main thread forks meanwhile.
FORKING = '''
import logging, multiprocessing, os, queue, signal, sys, tempfile, threading
from pathlib import Path

from ava_pipeline import open_run
from tests.write.feeding import Room, step

PACKAGE = Path(sys.argv[2])
TRACED = tuple(str(PACKAGE / name) for name in ("write/", "contract/", "provenance.py"))
CLOSELY = str(PACKAGE / "contract/tables.py")
assert all(Path(path.rstrip("/")).exists() for path in (*TRACED, CLOSELY))
EVERY = 7
MAX_CHILDREN = 4

seen = set()
stops, go_on = queue.SimpleQueue(), queue.SimpleQueue()


def stop_in_worker(frame, event, argument):
    """Stop at every seventh new line of the traced files, and at each of contract/tables.py."""
    if not frame.f_code.co_filename.startswith(TRACED):
        return None
    place = frame.f_code.co_filename, frame.f_lineno
    if event == "line" and place not in seen:
        seen.add(place)
        if len(seen) % EVERY == 0 or place[0].startswith(CLOSELY):
            stops.put(place)
            go_on.get()
    return stop_in_worker


def use_everything(root):
    """What a DataLoader worker may do, telemetry of its own included."""
    signal.alarm(20)  # a child that hangs prints its stacks and ends, like this process
    threading.settrace(None)
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    logging.getLogger("ava_pipeline").info("a child")
    numbers = multiprocessing.get_context("fork").Queue()
    numbers.put(7)
    assert numbers.get(timeout=15) == 7
    assert open_run(before).events().empty
    room = Room(root)
    room.worker.start()
    room.offer(step(1))
    assert room.worker.close(15, "finished").written == 1


def feed(root):
    """A run from its begin to its end: rows, an event, a sync."""
    room = Room(root, fsync=True)
    threading.settrace(stop_in_worker)
    room.worker.start()
    for batch in (1, 2):
        room.offer(step(batch, float("nan"), 0.5))
        assert room.channel.flush(100)
    assert room.worker.close(100, "finished").written == 2
    stops.put(None)


def ended(children):
    place, child = children.pop(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, (place, status)


before = Path(sys.argv[1]) / "before"
room = Room(before)
room.write([1])
room.close()
assert open_run(before).events().empty  # imports pandas here, rather than in every child
feeder = threading.Thread(target=feed, args=(Path(sys.argv[1]) / "run",), daemon=True)
feeder.start()
children, num_forks = [], 0
while (place := stops.get()) is not None:
    child = os.fork()
    if child == 0:
        try:
            use_everything(Path(sys.argv[1]) / f"child-{os.getpid()}")
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    children.append((place, child))
    num_forks += 1
    go_on.put(None)
    if len(children) == MAX_CHILDREN:
        ended(children)
while children:
    ended(children)
print(num_forks)
'''


def test_a_child_forked_at_any_line_of_the_worker_can_use_everything(tmp_path: Path) -> None:
    """It uses temporary files, logging, queues, `open_run` and telemetry of its own."""
    ended = run_script(FORKING, tmp_path, ROOT / "ava_pipeline", deadline_s=120)
    assert int(ended.stdout) > 50
