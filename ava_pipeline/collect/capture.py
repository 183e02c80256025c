"""CUDA graphs: whether one is being captured, and how the background thread waits without ending the capture."""

import ctypes
import threading

import torch

from ava_pipeline.logs import logger

RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
REMEDY = "Capture with torch.cuda.graph(graph, capture_error_mode='thread_local')."

_thread = threading.local()


def is_capturing() -> bool:
    """Whether the current stream records a CUDA graph, whose kernels run only when the graph is replayed."""
    is_initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # as in torch
    return is_initialized and torch.cuda.is_current_stream_capturing()


def leave_captures_alone(device: torch.device) -> None:
    """Let the calling thread, which captures nothing itself, wait for CUDA events while other threads capture.

    `torch.cuda.graph` captures in CUDA's global mode. While it does, CUDA refuses cudaEventSynchronize and
    cudaEventQuery in every thread, even for events that the capture does not contain, and the capture fails too. This
    does not hold for threads in relaxed mode. torch uses that for its own background threads, and has no public name
    for it; so the driver is called, under a name that is the same in all versions of CUDA.

    The device becomes the thread's own first: otherwise the thread's first CUDA call takes memory on device 0.

    Source: CUDA driver API, cuThreadExchangeStreamCaptureMode.
    """
    if getattr(_thread, "is_ready", False):
        return
    _thread.is_ready = True
    torch.cuda.set_device(device)
    if torch.version.cuda is None:
        return  # ROCm, whose driver has other names
    problem = _exchange_capture_mode(RELAXED)
    if problem is not None:
        logger.warning("telemetry may end the capture of a CUDA graph: %s. %s", problem, REMEDY)


def _exchange_capture_mode(mode: int) -> str | None:
    """Set the calling thread's capture mode; return what went wrong."""
    try:
        status = ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(mode)))
    except (OSError, AttributeError) as error:
        return str(error)
    return f"cuThreadExchangeStreamCaptureMode returned {status}" if status else None
