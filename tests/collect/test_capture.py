"""CUDA graphs: a step in a capture is left out, and the background thread ends no capture."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect import capture
from ava_pipeline.collect.staging import PinnedSlot
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import backward, tiny
from tests.collect.recorded import batches, warnings_of


class Stream:
    """The current stream, which can be told to capture.

    Attributes:
        is_capturing: whether it records a graph instead of running kernels.
    """

    def __init__(self) -> None:
        self.is_capturing = False


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """A stream that torch asks whether it captures."""
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.is_capturing)
    return stream


def test_a_step_in_a_capture_is_left_out_and_explained_once(
    tmp_path: Path, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows are those of the warm-up and of the replays, and no order of calls is found wrong."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(1, 13):
            backward(model, batch)
            stream.is_capturing = batch in {3, 4}
            assert telemetry.step() is not stream.is_capturing
            if batch < 5:  # later steps are part of the replays, which run no hook
                optimizer.step()
    assert batches(tmp_path) == [1, 2, *range(5, 13)]
    (message,) = warnings_of(caplog)
    assert "after each graph.replay()" in message
    assert open_run(tmp_path).events()["event"].tolist() == ["misuse"]
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_steps_after_replays_of_a_captured_optimizer_are_in_order(
    tmp_path: Path, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    """Warm-up and capture run the optimizer before the first call, and no replay is counted: neither is a mistake."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(4):
            backward(model, batch)
            stream.is_capturing = batch == 3
            optimizer.step()
        stream.is_capturing = False
        for _ in range(12):
            assert telemetry.step()
    assert warnings_of(caplog) == []


def test_a_run_that_calls_step_only_in_the_capture_is_told_so_at_its_end(
    tmp_path: Path, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that is not due only counts, so nothing is said before."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=10) as telemetry:
        backward(model)
        stream.is_capturing = True
        telemetry.step()
        optimizer.step()
        stream.is_capturing = False
    (message,) = warnings_of(caplog)
    assert "no row was recorded" in message
    assert "after each graph.replay()" in message


def test_what_a_captured_clip_does_is_unknown(tmp_path: Path, stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    """A replay clips without being counted, and norms after it are those of clipped gradients: one warning says so."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        backward(model)
        stream.is_capturing = True
        telemetry.clip_grad_norm_(0.05)
        stream.is_capturing = False
        for _ in range(3):
            telemetry.step()
    assert open_run(tmp_path).steps()[["clip_coefficient", "clip_rate"]].isna().all(axis=None)
    (message,) = warnings_of(caplog)
    assert "norms after clipping" in message


def test_a_captured_clip_does_not_use_the_norms_of_one_batch(
    tmp_path: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every replay would clip by them; the graph must contain torch's own pass."""
    torchs = Mock(wraps=nn.utils.clip_grad_norm_)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", torchs)
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(3):
            backward(model, batch)
            telemetry.step()
            stream.is_capturing = batch == 2
            telemetry.clip_grad_norm_(0.05)
    assert torchs.call_count == 2  # at the first clip, and in the capture


def load_driver(monkeypatch: pytest.MonkeyPatch, load: Callable[[str], Any]) -> None:
    """Let the module, but not torch, load the CUDA driver in this way."""
    monkeypatch.setattr(capture, "ctypes", SimpleNamespace(CDLL=load, byref=ctypes.byref, c_int=ctypes.c_int))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The calls that a fake CUDA gets, each with the thread's name."""
    calls: list[tuple[object, ...]] = []

    def note(*call: object) -> None:
        calls.append((threading.current_thread().name, *call))

    def event(*, blocking: bool) -> Any:
        return SimpleNamespace(synchronize=lambda: note("synchronize", blocking))

    def exchange(mode: Any) -> int:
        note("exchange", mode._obj.value)
        return 0

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: note("set_device", str(device)))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    driver = SimpleNamespace(cuThreadExchangeStreamCaptureMode=exchange)
    load_driver(monkeypatch, {"libcuda.so.1": driver}.__getitem__)
    monkeypatch.setattr(capture, "_thread", threading.local())
    return calls


@pytest.fixture
def slot(calls: object) -> Iterator[PinnedSlot]:
    """A slot for the numbers of the second card."""
    with FakeTensorMode():
        yield PinnedSlot(torch.device("cuda:1"), 4)


def wait_in(name: str, slot: PinnedSlot) -> None:
    """Wait twice, in a thread of this name."""

    def wait() -> None:
        slot.wait()
        slot.wait()

    thread = threading.Thread(target=wait, name=name)
    thread.start()
    thread.join()


def test_the_waiting_thread_takes_its_device_and_leaves_captures_alone(
    calls: list[tuple[object, ...]], slot: PinnedSlot
) -> None:
    """Once in each thread, before it waits: its device, and the mode in which others' captures do not matter."""
    for name in ("first", "second"):
        wait_in(name, slot)
    assert calls == [
        call
        for name in ("first", "second")
        for call in (
            (name, "set_device", "cuda:1"),
            (name, "exchange", 2),  # CU_STREAM_CAPTURE_MODE_RELAXED
            (name, "synchronize", True),
            (name, "synchronize", True),
        )
    ]


def missing(_name: str) -> None:
    """A system without the driver's library."""
    raise OSError("libcuda.so.1: cannot open shared object file")


def failing(_name: str) -> object:
    """A driver that refuses."""
    return SimpleNamespace(cuThreadExchangeStreamCaptureMode=lambda _: 3)


@pytest.mark.parametrize("driver", [missing, failing])
def test_a_mode_that_cannot_be_set_is_a_warning_with_the_remedy(
    calls: list[tuple[object, ...]],
    slot: PinnedSlot,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    driver: Any,
) -> None:
    """And the thread waits nevertheless."""
    load_driver(monkeypatch, driver)
    wait_in("first", slot)
    assert [call[1] for call in calls] == ["set_device", "synchronize", "synchronize"]
    (message,) = warnings_of(caplog)
    assert "capture_error_mode='thread_local'" in message


def test_pinned_memory_is_on_the_host_whatever_the_default_device(calls: object) -> None:
    """`torch.set_default_device("cuda")` would otherwise put it on the device."""
    with FakeTensorMode(), torch.device("cuda"):
        assert PinnedSlot(torch.device("cuda"), 4).buffer.device.type == "cpu"
