"""Weight snapshots in the background thread: from the memory that the training thread filled to a complete file."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.files import sync_folder
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import SnapshotCounters
from ava_pipeline.contract.snapshots import TIED_KEY, SnapshotFile, snapshot_files
from ava_pipeline.errors import WriteError, in_words
from ava_pipeline.write.event_log import EventLog, snapshot_event
from ava_pipeline.write.older_snapshots import remove_unfinished

RESERVE_BYTES = 64 * 2**20  # of the disk, which snapshots leave to rows


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor on the host: the name of its type as torch spells it, its shape, and its bytes.

    `data` has the shape and integers of the type's size, in any order of memory; NumPy has no bfloat16.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.generic]


class StagedWeights(Protocol):
    """Weights that the device may still be copying to the host."""

    def read(self) -> Sequence[Weight]:
        """Wait for the copy and return the weights, which are in reused memory."""

    def free(self) -> None:
        """Give the memory back: the weights are written, or never will be."""


@dataclass(frozen=True, slots=True)
class PendingSnapshot:
    """The weights that a 1-based batch was computed with; `tied` is name -> the name that the tensor is saved under."""

    batch_idx: int
    epoch: int
    num_bytes: int
    tied: Mapping[str, str]
    staged: StagedWeights


class SnapshotHandOver:
    """Where the training thread leaves a snapshot for the background thread; there is at most one.

    `waiting` is set by the training thread while it is None, and only then, and reset by the background thread once the
    snapshot is written. So neither needs a lock.
    """

    def __init__(self) -> None:
        self.waiting: PendingSnapshot | None = None


class SnapshotWriter:
    """Writes the snapshot that waits, and thins out the older ones. Trouble is an event, and is never raised.

    Past `max_snapshots`, every second one of the older half is removed, so that the first and the latest stay. Nothing
    else that telemetry wrote is ever deleted.
    """

    def __init__(self, layout: RunLayout, hand_over: SnapshotHandOver, log: EventLog, *, max_snapshots: int) -> None:
        self._layout = layout
        self._hand_over = hand_over
        self._log = log
        self._max_snapshots = max_snapshots
        self._safetensors: Any = import_module("safetensors")  # an extra; not in the background, where imports may lock

    @property
    def is_waiting(self) -> bool:
        """Whether there is a snapshot to write."""
        return self._hand_over.waiting is not None

    def write(self, counters: SnapshotCounters, count: Callable[[], None]) -> None:
        """Write the snapshot that waits, if there is one; `count` stores the counters in the manifest."""
        snapshot = self._hand_over.waiting
        if snapshot is None:
            return
        try:
            self._write(snapshot)
            counters.written += 1
        except Exception as error:  # noqa: BLE001  # whatever it is, it costs this snapshot and not the thread
            counters.failed += 1
            self.fail(in_words(error))
            return
        finally:
            self._let_go(snapshot)
        try:
            self._thin_out(counters, count)
        except Exception as error:  # noqa: BLE001  # as above
            self._report(snapshot, f"older snapshots could not be removed: {in_words(error)}")

    def fail(self, reason: str) -> None:
        """Report that the snapshot that waits is not written, and let it go."""
        snapshot = self._hand_over.waiting
        if snapshot is not None:
            self._report(snapshot, f"the weights of this batch could not be written: {reason}")
            self._let_go(snapshot)

    def _report(self, snapshot: PendingSnapshot, message: str) -> None:
        self._log.add(snapshot_event(snapshot.batch_idx, snapshot.epoch, message))

    def _let_go(self, snapshot: PendingSnapshot) -> None:
        if self._hand_over.waiting is snapshot:
            snapshot.staged.free()
            self._hand_over.waiting = None

    def _write(self, snapshot: PendingSnapshot) -> None:
        layout = self._layout
        path = layout.weight_snapshot(snapshot.epoch, snapshot.batch_idx)
        unfinished = layout.unfinished_snapshots / path.name
        weights = snapshot.staged.read()
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        self._check_space(snapshot)
        try:
            self._serialize(weights, snapshot, os.fspath(unfinished))
            shutil.copymode(layout.manifest, unfinished)  # safetensors makes files that only their owner can read
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            remove_unfinished(layout)
        sync_folder(path.parent)

    def _serialize(self, weights: Sequence[Weight], snapshot: PendingSnapshot, path: str) -> None:
        # Contiguous copies where needed; the list keeps them alive while safetensors reads their bytes.
        arrays = [np.ascontiguousarray(weight.data) for weight in weights]
        specs = {
            weight.name: self._safetensors.TensorSpec(
                dtype=weight.dtype, shape=weight.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
            )
            for weight, array in zip(weights, arrays, strict=True)
        }
        metadata = {
            "format": "pt",  # torch: other libraries ask for it
            "batch_idx": str(snapshot.batch_idx),
            "epoch": str(snapshot.epoch),
        }
        if snapshot.tied:
            metadata[TIED_KEY] = json.dumps(dict(snapshot.tied))
        self._safetensors.serialize_file(specs, path, metadata)

    def _check_space(self, snapshot: PendingSnapshot) -> None:
        free = shutil.disk_usage(self._layout.weight_snapshots).free
        if free < snapshot.num_bytes + RESERVE_BYTES:
            raise WriteError(
                f"it needs {_mib(snapshot.num_bytes)} MiB, and {_mib(RESERVE_BYTES)} MiB are left to rows, "
                f"but the disk has only {_mib(free)} MiB. Free some space, or lower max_weight_snapshots."
            )

    def _thin_out(self, counters: SnapshotCounters, count: Callable[[], None]) -> None:
        files = [file for file in snapshot_files(self._layout) if file.is_safetensors]
        surplus = surplus_snapshots(files, self._max_snapshots)
        if surplus:
            counters.removed += len(surplus)
            count()  # first, so that a process killed in between leaves more files than are counted, and not fewer
            for file in surplus:
                file.path.unlink(missing_ok=True)


def surplus_snapshots(files: Sequence[SnapshotFile], max_snapshots: int) -> list[SnapshotFile]:
    """The snapshots to remove, of a list by batch, so that no more than `max_snapshots`, at least 2, are left.

    Every second one of the older half goes, and again until it is enough. The first and the last stay.

    Example:
        >>> files = [SnapshotFile(batch, 0, Path()) for batch in range(1, 10)]
        >>> [file.batch_idx for file in surplus_snapshots(files, 8)]
        [2, 4]
    """
    kept, surplus = list(files), list[SnapshotFile]()
    while len(kept) > max(2, max_snapshots):
        older = slice(1, max(2, len(kept) // 2), 2)
        surplus += kept[older]
        del kept[older]
    return sorted(surplus)


def _mib(num_bytes: int) -> int:
    return -(-num_bytes // 2**20)
