"""Weight snapshots hold the weights that a batch was computed with, bit for bit, and cost the training nothing else."""

import os
import shutil
import sys
from itertools import count
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.collect.snapshots import WeightSnapshots
from ava_pipeline.collect.staging import Slot
from ava_pipeline.errors import ConfigError
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.snapshots import PendingSnapshot, SnapshotWriter
from tests.collect.interrupting import Interrupted, Stop, of_package
from tests.collect.late_device import late_device
from tests.collect.models import TinyNet, backward, tiny, train
from tests.collect.no_waiting import FakeSlot, no_waiting
from tests.collect.test_full_and_gone import FullDisk
from tests.write.test_worker import Gate

pytestmark = pytest.mark.timeout(120)

SOON_S = 25.0


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


class Mixed(nn.Module):
    """Tensors of every kind: channels-last, half precision, tied, buffers, frozen, scalar, empty, and views."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.embed = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.embed.weight
        self.half_precision = nn.Parameter(torch.randn(5).half())
        self.brain = nn.Parameter(torch.randn(3, 5).bfloat16(), requires_grad=False)
        self.turned = nn.Parameter(torch.randn(2, 7).t())
        self.every_second = nn.Parameter(torch.randn(10)[::2])
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("eighth", torch.randn(4).to(torch.float8_e4m3fn))
        self.register_buffer("double_precision", torch.randn(2, 3, dtype=torch.float64))
        self.register_buffer("volatile", torch.randn(9), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """A loss of images (B, 3, H, W) that every parameter takes part in."""
        hidden = self.out(self.embed(self.norm(self.conv(x)).mean((2, 3))))
        rest = (
            self.half_precision.float().sum() + self.turned.sum() + self.every_second.square().sum() + self.empty.sum()
        )
        loss: Tensor = hidden.square().sum() + rest
        return loss


class Settled:
    """Says when the background thread has let a snapshot go, written or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._batches: Queue[int] = Queue()
        let_go = SnapshotWriter._let_go

        def let_go_and_say_so(writer: SnapshotWriter, snapshot: PendingSnapshot) -> None:
            let_go(writer, snapshot)
            self._batches.put(snapshot.batch_idx)

        monkeypatch.setattr(SnapshotWriter, "_let_go", let_go_and_say_so)

    def wait(self) -> int:
        """The batch of the next one."""
        return self._batches.get(timeout=SOON_S)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Settled:
    """Lets a test wait for each snapshot."""
    return Settled(monkeypatch)


def collector(
    model: nn.Module, optimizer: torch.optim.Optimizer, root: Path, every: int = 1, **settings: Any
) -> TelemetryCollector:
    """A collector that saves weights every few batches, and rows rarely."""
    settings = {"collect_every_n": 1000, "track_weight_snapshots": True, "weight_snapshot_every_n": every} | settings
    return TelemetryCollector(model, optimizer, root, **settings)


def saved(root: Path) -> list[int]:
    """The batches whose weights are saved."""
    return [snapshot.batch_idx for snapshot in open_run(root).weight_snapshots()]


def events(root: Path, event: str) -> list[tuple[int, str]]:
    """The batches and messages of some events."""
    found = open_run(root).events().query(f"event == {event!r}")
    return list(zip(found["batch_idx"], found["message"], strict=True))


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal types, shapes and bytes."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.contiguous().flatten().view(torch.uint8).equal(expected.contiguous().flatten().view(torch.uint8))


def test_a_snapshot_holds_the_state_dict_of_its_batch(tmp_path: Path, settled: Settled) -> None:
    """Names and bytes, as they were before the optimizer stepped; a tied tensor once, with its other name."""
    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.01)
    states = {}
    with collector(nn.DataParallel(model), optimizer, tmp_path) as telemetry:
        for batch in (1, 2, 3):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 8, 8)).backward()
            states[batch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            telemetry.step(7)
            optimizer.step()
            assert settled.wait() == batch
    assert not torch.equal(states[1]["conv.weight"], states[3]["conv.weight"])
    for snapshot in open_run(tmp_path).weight_snapshots():
        state = states[snapshot.batch_idx]
        found = load_file(snapshot.path)
        assert snapshot.path.name == f"weights_epoch7_batch{snapshot.batch_idx}.safetensors"
        assert snapshot.tied() == {"out.weight": "embed.weight"}
        assert found.keys() == state.keys() - {"out.weight"}
        for name, tensor in found.items():
            assert_same_bits(tensor, state[name])
        with safe_open(snapshot.path, "pt") as file:
            about = file.metadata()
        assert (about["batch_idx"], about["epoch"]) == (str(snapshot.batch_idx), "7")
    fresh = Mixed()
    missing = fresh.load_state_dict(load_file(snapshot.path), strict=False)
    assert tuple(missing) == (["out.weight"], [])
    for name, tensor in fresh.state_dict().items():
        assert_same_bits(tensor, states[3][name])
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_every_n_whatever_collect_every_n_is(tmp_path: Path, settled: Settled) -> None:
    """Rows and snapshots have counts of their own; the manifest counts the snapshots."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path, 4, collect_every_n=3) as telemetry:
        for batch in range(1, 13):
            train(telemetry, model, optimizer, 1)
            if batch % 4 == 0:
                settled.wait()
    assert saved(tmp_path) == [4, 8, 12]
    assert open_run(tmp_path).steps()["batch_idx"].tolist() == [3, 6, 9, 12]
    assert open_run(tmp_path).manifest.attempt.weight_snapshots.written == 3
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_a_batch_that_only_accumulates_defers_its_snapshot(tmp_path: Path) -> None:
    """To the next one that does not, whose number it has; the next is due at a multiple of n again."""
    model, optimizer = tiny()
    backward(model)
    with collector(model, optimizer, tmp_path, 4) as telemetry:
        for batch in range(1, 8):
            telemetry.step(accumulating=batch in {4, 5})
    assert saved(tmp_path) == [6]


def test_steps_in_between_only_count() -> None:
    """One number is compared: the earlier of the next row and the next snapshot."""
    counted = BatchCount(3, 4)
    due = []
    counted.schedule_step()
    for counted.batch_idx in range(1, 13):
        if counted.batch_idx >= counted.due:
            due.append(counted.batch_idx)
            if counted.batch_idx >= counted.next_row:
                counted.schedule_row(counted.batch_idx)
            if counted.batch_idx >= counted.next_snapshot:
                counted.schedule_snapshot(counted.batch_idx)
            counted.schedule_step()
    assert due == [3, 4, 6, 8, 9, 12]


def test_what_is_due_while_one_is_written_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps never wait for it; each that is left out is an event, and `close` writes the one in flight."""
    gate = Gate(monkeypatch, SnapshotWriter, "_write")
    model, optimizer = tiny()
    telemetry = collector(model, optimizer, tmp_path, 2)
    train(telemetry, model, optimizer, 2)
    assert gate.reached.wait(SOON_S)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(telemetry, model, optimizer, 4)
    gate.opened.set()
    telemetry.close()
    assert saved(tmp_path) == [2]
    skipped = events(tmp_path, "skipped_snapshot")
    assert [batch for batch, _ in skipped] == [4, 6]
    assert "those of batch 2 are still written" in skipped[0][1]
    (snapshot,) = open_run(tmp_path).weight_snapshots()
    assert not torch.equal(load_file(snapshot.path)["mlp_head.3.weight"], weights["mlp_head.3.weight"])
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_older_snapshots_are_thinned_out(tmp_path: Path, settled: Settled) -> None:
    """No more than allowed are left, among them the first and the last; nothing else is removed."""
    model, optimizer = tiny()
    notes = tmp_path / "telemetry" / "weight_snapshots" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with collector(model, optimizer, tmp_path, max_weight_snapshots=6) as telemetry:
        for _ in range(30):
            train(telemetry, model, optimizer, 1)
            settled.wait()
    left = saved(tmp_path)
    assert len(left) <= 6
    assert (left[0], left[-2:]) == (1, [29, 30])
    counted = open_run(tmp_path).manifest.attempt.weight_snapshots
    assert (counted.written, counted.written - counted.removed) == (30, len(left))
    assert notes.exists()
    assert [one.id for one in validate_run(tmp_path)] == ["files.name"]


class TestFullDisk:
    """A disk that fills costs snapshots, and never rows."""

    def test_space_is_left_to_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: Settled) -> None:
        """A snapshot that would take the last 64 MiB is not begun; the next one is, when there is space."""
        model, optimizer = tiny()
        free = [10 * 2**20]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free[0]))
        with collector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
            train(telemetry, model, optimizer, 1)
            settled.wait()
            free[0] = 100 * 2**20
            train(telemetry, model, optimizer, 1)
            settled.wait()
        assert saved(tmp_path) == [2]
        ((batch, message),) = events(tmp_path, "failed_snapshot")
        assert batch == 1
        assert "64 MiB are left to rows, but the disk has only 10 MiB" in message
        assert telemetry.stats().written == 2
        assert open_run(tmp_path).manifest.attempt.weight_snapshots.failed == 1
        assert [str(one) for one in validate_run(tmp_path)] == []

    def test_a_disk_that_refuses_it_costs_only_the_snapshot(self, tmp_path: Path, settled: Settled) -> None:
        """What was half-written is removed, rows go on, and training is the same to the bit."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 64), nn.Linear(64, 10))  # more than the 2 KiB that a file may have
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        disk = FullDisk(tmp_path)
        with collector(model, optimizer, tmp_path / "run", collect_every_n=1) as telemetry:
            train(telemetry, model, optimizer, 1)
            settled.wait()
            disk.fill()
            try:
                train(telemetry, model, optimizer, 1)
                settled.wait()
                folder = tmp_path / "run" / "telemetry" / "weight_snapshots"
                assert [path.name for path in folder.rglob("*")] == ["weights_epoch0_batch1.safetensors"]
            finally:
                disk.free()
            train(telemetry, model, optimizer, 1)
            settled.wait()
        assert saved(tmp_path / "run") == [1, 3]
        assert [batch for batch, _ in events(tmp_path / "run", "failed_snapshot")] == [2]
        assert [str(one) for one in validate_run(tmp_path / "run")] == []


def test_a_run_directory_that_was_moved_away_is_begun_again(tmp_path: Path, settled: Settled) -> None:
    """As for the tables: later snapshots are in the run directory."""
    root, away = tmp_path / "run", tmp_path / "away"
    model, optimizer = tiny()
    with collector(model, optimizer, root, collect_every_n=1) as telemetry:
        train(telemetry, model, optimizer, 1)
        settled.wait()
        root.rename(away)
        train(telemetry, model, optimizer, 1)
        settled.wait()
    assert (saved(away), saved(root)) == ([1], [2])
    assert [str(one) for one in validate_run(root)] == []


@pytest.mark.parametrize("resumed_from", [0, 3])
def test_a_resume_sets_later_snapshots_aside(tmp_path: Path, settled: Settled, resumed_from: int) -> None:
    """Those past the resumed batch move to `superseded/`, and are not overwritten; a fresh start moves them all."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path) as telemetry:
        for _ in range(5):
            train(telemetry, model, optimizer, 1)
            settled.wait()
    model, optimizer = tiny(1)
    telemetry = collector(model, optimizer, tmp_path)
    if resumed_from:
        telemetry.load_state_dict({"batch_idx": resumed_from, "epoch": 0})
    train(telemetry, model, optimizer, 1)
    telemetry.close()
    kept = list(range(1, resumed_from + 1))
    assert saved(tmp_path) == [*kept, resumed_from + 1]
    moved = tmp_path / "telemetry" / "superseded" / "attempt-2" / "weight_snapshots"
    names = {f"weights_epoch0_batch{batch}.safetensors" for batch in range(resumed_from + 1, 6)}
    assert {path.name for path in moved.iterdir()} == names
    assert open_run(tmp_path).manifest.attempt.weight_snapshots.set_aside == 5 - resumed_from
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    """To the bit; and memory is reused, whatever is saved."""
    results = []
    for root in (tmp_path, None):
        model, optimizer = tiny()
        telemetry = None if root is None else collector(model, optimizer, root)
        train(telemetry, model, optimizer, 20)
        if telemetry is not None:
            telemetry.close()
        results.append(list(model.parameters()))
    assert all(map(torch.equal, *results))


def test_a_changed_model_is_followed(tmp_path: Path, settled: Settled) -> None:
    """After `rebind`, another model's weights are saved."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path) as telemetry:
        train(telemetry, model, optimizer, 1)
        settled.wait()
        other = nn.Sequential(nn.Linear(6, 3))
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        telemetry.rebind(model=other, optimizer=optimizer)
        train(telemetry, other, optimizer, 1)
        settled.wait()
    first, second = open_run(tmp_path).weight_snapshots()
    assert "mlp_head.3.bias" in first.shapes()
    assert second.shapes() == {"0.weight": (3, 6), "0.bias": (3,)}


def test_modules_of_a_list_have_the_names_of_their_groups(tmp_path: Path) -> None:
    """If two have a name in common, every name begins with the module's index, as in the manifest."""
    models = [nn.Linear(2, 2), nn.Linear(2, 3)]
    optimizer = torch.optim.SGD([*models[0].parameters(), *models[1].parameters()])
    with TelemetryCollector(
        models, optimizer, tmp_path, track_weight_snapshots=True, weight_snapshot_every_n=1
    ) as telemetry:
        models[1](models[0](torch.ones(1, 2))).sum().backward()
        telemetry.step()
    (snapshot,) = open_run(tmp_path).weight_snapshots()
    assert sorted(snapshot.shapes()) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_what_cannot_be_saved_is_named(tmp_path: Path, settled: Settled) -> None:
    """A tensor of a type that the format does not have; the others are saved."""
    model, optimizer = tiny()
    model.register_buffer("spectrum", torch.zeros(2, dtype=torch.complex128))
    with collector(model, optimizer, tmp_path) as telemetry:
        for _ in range(2):
            train(telemetry, model, optimizer, 1)
            settled.wait()
    ((_, message),) = events(tmp_path, "failed_snapshot")
    assert "not in the snapshots: spectrum." in message
    assert saved(tmp_path) == [1, 2]


def test_a_copy_that_fails_costs_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and rows go on; under "raise" it is raised."""

    def fail(*_: object) -> bool:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(WeightSnapshots, "take", fail)
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        train(telemetry, model, optimizer, 2)
    assert [batch for batch, _ in events(tmp_path, "failed_snapshot")] == [1, 2]
    assert telemetry.stats().written == 2
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        collector(model, optimizer, tmp_path / "strict", on_error="raise") as telemetry,
    ):
        train(telemetry, model, optimizer, 1)


def test_an_interrupt_anywhere_leaves_nothing_broken(tmp_path: Path, settled: Settled) -> None:
    """What a signal handler raises at any line of `step` reaches the loop, and the next snapshots are right."""
    model, optimizer = tiny()
    backward(model)
    telemetry = collector(model, optimizer, tmp_path, max_weight_snapshots=1000)
    telemetry.step()
    settled.wait()
    snapshots = telemetry._recorder._snapshots
    assert snapshots is not None
    num_interrupted = 0
    for number in count(1):
        with Interrupted(number, Stop, of_package) as interruption:
            try:
                telemetry.step()
                is_raised = False
            except Stop:
                is_raised = True
        assert is_raised == interruption.came
        if not is_raised:
            break
        num_interrupted += 1
        if snapshots.hand_over.waiting is not None:
            settled.wait()
        while not settled._batches.empty():
            settled.wait()
        telemetry.step()
    telemetry.close()
    assert num_interrupted > 50
    for snapshot in open_run(tmp_path).weight_snapshots():
        for name, tensor in load_file(snapshot.path).items():
            assert_same_bits(tensor, model.state_dict()[name])
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_nothing_is_saved_where_telemetry_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `enabled=False`, with the switch off, and in other ranks than 0."""
    for name, settings in {"off": {"enabled": False}, "no": {"track_weight_snapshots": False}, "rank": {}}.items():
        monkeypatch.setenv("RANK", "1" if name == "rank" else "0")
        model, optimizer = tiny()
        with collector(model, optimizer, tmp_path / name, **settings) as telemetry:
            train(telemetry, model, optimizer, 2)
        assert not (tmp_path / name).exists()


def test_a_forked_child_saves_nothing(tmp_path: Path) -> None:
    """It inherits the collector and the memory; the parent's snapshots go on."""
    model, optimizer = tiny()
    with collector(model, optimizer, tmp_path, 2) as telemetry:
        train(telemetry, model, optimizer, 1)
        child = os.fork()
        if not child:
            train(telemetry, model, optimizer, 3)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        train(telemetry, model, optimizer, 1)
    assert saved(tmp_path) == [2]


def test_without_safetensors_the_constructor_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before anything is set up; with telemetry off nothing is needed."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    model, optimizer = tiny()
    with pytest.raises(ConfigError, match=r"pip install 'ava-pipeline\[snapshots\]'"):
        collector(model, optimizer, tmp_path)
    collector(model, optimizer, tmp_path, enabled=False).close()


class TestOnADevice:
    """With memory that a device copies to."""

    def test_the_copy_is_waited_for_before_it_is_written(self, tmp_path: Path) -> None:
        """A device that copies as late as possible: what is read is what the weights were at the call."""
        model, _ = tiny()
        with late_device() as device:
            taken = WeightSnapshots(lambda: [model], EventLog(tmp_path), new_slot=device.new_slot, host="")
            for batch in (1, 2):
                expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                assert taken.take(batch, 0)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(1)
                pending = taken.hand_over.waiting
                assert pending is not None
                found = {weight.name: weight.data.copy() for weight in pending.staged.read()}
                assert found.keys() == expected.keys()
                for name, tensor in expected.items():
                    assert found[name].tobytes() == tensor.numpy().tobytes()
                pending.staged.free()
                taken.hand_over.waiting = None
            assert len(device.slots) == 1

    def test_memory_of_an_interrupted_copy_is_not_used_again(self, tmp_path: Path) -> None:
        """The device may still be copying to it."""
        model, _ = tiny()
        with late_device() as device:
            taken = WeightSnapshots(lambda: [model], EventLog(tmp_path), new_slot=device.new_slot, host="")
            for number in count(1):
                with Interrupted(number, Stop, of_package) as interruption:
                    try:
                        taken.take(1, 0)
                    except Stop:
                        assert taken.hand_over.waiting is None or not taken._free
                if not interruption.came:
                    break
                taken.hand_over.waiting = None
            assert len(device.slots) > 1

    def test_it_waits_for_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a fake CUDA device, where nothing can be waited for."""
        with no_waiting(monkeypatch) as mode:

            def new_slot(_: torch.device, num_numbers: int) -> Slot:
                slot = FakeSlot(num_numbers)
                mode.pinned.append(slot.buffer)
                return slot

            with torch.device("cuda:0"):
                model = TinyNet()
            with torch.device("cuda:1"):
                model.mlp_head = TinyNet().mlp_head
            taken = WeightSnapshots(lambda: [model], EventLog(tmp_path), new_slot=new_slot)
            assert taken.take(1, 0)
        assert len(mode.pinned) == 2
