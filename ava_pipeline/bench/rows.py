"""Rows without a model: what the training thread would hand over, at any rate, and a run that writes them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.keys import KEY_COLUMNS
from ava_pipeline.contract.manifest import Group
from ava_pipeline.contract.measured_tables import GRADIENT_NORMS, LEARNING_RATES, STEPS
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.signs.non_finite import non_finite_events
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import Channel, TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.rows import Numbers, PendingRow, Rows
from ava_pipeline.write.run_files import RunFiles
from ava_pipeline.write.sign_watch import SignWatch
from ava_pipeline.write.worker import Worker

GROUPS = {
    "overall": Group(role="overall", parameters=("layer4.weight", "fc.0.weight", "fc.3.weight")),
    "backbone_layer4": Group(role="backbone_last", parameters=("layer4.weight",), parent="overall"),
    "mlp_head": Group(role="head", parameters=("fc.0.weight", "fc.3.weight"), parent="overall"),
    "mlp_layer_0": Group(role="head_layer", parameters=("fc.0.weight",), parent="mlp_head"),
    "mlp_layer_3": Group(role="head_layer", parameters=("fc.3.weight",), parent="mlp_head"),
}
# The tables of a run of the AVA model, with all columns that its measures declare.
TABLES = (
    RunTable.of(GRADIENT_NORMS, tuple(GROUPS)),
    RunTable.of(LEARNING_RATES, ("lr_group_0", "lr_group_1")),
    RunTable.of(STEPS, ("loss",)),
)
MAX_PENDING = 1024
_NUM_DIFFERENT = 1024
_PATIENCE_S = 600.0


class PlainSource:
    """A table's rows of numbers that are its values already."""

    def __init__(self, run_table: RunTable) -> None:
        self.run_table = run_table
        self._names = run_table.column_names[len(KEY_COLUMNS) :]

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Sequence[object]]:  # noqa: ARG002  # these numbers need none
        """A column a name."""
        return dict(zip(self._names, zip(*numbers, strict=True), strict=True))

    def events(self, rows: Rows) -> Iterable[Event]:
        """What every measure tells: that values are not finite."""
        return non_finite_events(rows)


class _Ready:
    """Numbers that are on the host already."""

    def __init__(self, numbers: list[Numbers]) -> None:
        self._numbers = numbers

    def read(self) -> list[Numbers]:
        return self._numbers


class WrittenRun:
    """A run's files and worker, fed by whoever calls `offer`.

    Args:
        root: the run directory.
        flush_interval_s: as of the collector.
    """

    def __init__(self, root: Path, *, flush_interval_s: float = 1.0) -> None:
        log = EventLog(root)
        facts = RunFacts(groups=GROUPS, collect_every_n=1)
        watch = SignWatch(GROUPS, Thresholds(), log, lambda _: None)
        files = RunFiles(root, [PlainSource(table) for table in TABLES], facts, log, watch=watch)
        self._channel: Channel[PendingRow] = Channel(MAX_PENDING, on_full="block", block_timeout_s=_PATIENCE_S)
        self._worker = Worker(self._channel, files, log, flush_interval_s=flush_interval_s)
        self._worker.start()
        self._ready = [_Ready(_numbers(one)) for one in np.random.default_rng(0).random((_NUM_DIFFERENT, 6))]
        self._layouts = (None,) * len(TABLES)

    def offer(self, batches: Iterable[int]) -> None:
        """Hand a step a batch over, waiting where there is no room."""
        for batch in batches:
            row = PendingRow(batch, 0, self._ready[batch % _NUM_DIFFERENT], self._layouts)
            self._channel.offer(row, batch, 0)

    def flush(self) -> None:
        """Wait until all of them are in the files."""
        self._channel.flush()

    def close(self) -> TelemetryStats:
        """Finish the files."""
        return self._worker.close(None, "finished")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _numbers(drawn: "np.typing.NDArray[np.float64]") -> list[Numbers]:
    """A step under a GradScaler, of a loop that clips now and then, so that no column is empty."""
    backbone, *layers, first_rate, second_rate, loss = drawn.tolist()
    head = math.hypot(*layers)
    overall = math.hypot(backbone, head)
    norms = np.array([overall, backbone, head, *layers], dtype=np.float32).tolist()
    coefficient = min(1.0, 1.3 / (overall + 1e-6))
    return [norms, [first_rate, second_rate], [datetime.now(UTC), 65536.0, coefficient, float(coefficient < 1), loss]]
