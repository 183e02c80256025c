"""Metrics that a loop logs: their values are read, and rows that the disk refuses are reported."""

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ava_pipeline.collect.arguments import whole_number
from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.contract.columns import shown
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.finding import Severity
from ava_pipeline.contract.layout import Moment
from ava_pipeline.contract.tables import check_column_name
from ava_pipeline.errors import MisuseError, WriteError, in_words
from ava_pipeline.logs import logger
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.metrics_log import MetricsLog

OPENING_TIMEOUT_S = 60.0
FILE = "metrics.csv"
_KEYS = ("epoch", "batch_idx")
_KINDS_OF_NUMBERS = "biuf"  # NumPy's: booleans, integers and floats

Metric: TypeAlias = SupportsFloat | Tensor | NDArray[np.generic] | None


class LoggedMetrics:
    """What `TelemetryCollector.log_metrics` does.

    `wait_for_rows` waits until the background thread has handled the steps so far, or the given seconds have passed.
    `is_strict` raises when a row cannot be written, rather than record an event.
    """

    def __init__(
        self,
        rows: MetricsLog,
        events: EventLog,
        count: BatchCount,
        *,
        wait_for_rows: Callable[[float], object],
        is_strict: bool = False,
    ) -> None:
        self._rows = rows
        self._events = events
        self._count = count
        self._wait_for_rows = wait_for_rows
        self._is_strict = is_strict

    def log(
        self,
        metrics: Mapping[str, Metric],
        epoch: int | None,
        batch_idx: int | None,
        *,
        is_written: Callable[[], bool],
    ) -> None:
        """Write a row; raise MisuseError for wrong arguments, also where `is_written` says that nothing is written."""
        check_metrics(metrics)
        moment = Moment(
            self._epoch(epoch), None if batch_idx is None else whole_number("batch_idx", batch_idx, least=1)
        )
        if not metrics or not is_written():
            return
        try:
            values = {name: _as_float(name, value) for name, value in metrics.items()}
            if not self._rows.has_begun:
                # Once the first steps are written, it is known whether another process writes this run.
                self._wait_for_rows(OPENING_TIMEOUT_S)
            num_older = self._rows.num_waiting
            self._rows.write(moment, values)
        except MisuseError:
            raise
        except Exception as error:  # noqa: BLE001  # training is worth more than a row, whatever the device or disk did
            self._report(moment, error)
        else:
            self._report_written(num_older)

    def resume(self, batch_idx: int, epoch: int) -> None:
        """Keep the rows up to a checkpoint; raise MisuseError if rows were logged before."""
        self._rows.resume(batch_idx, epoch)

    def write_again(self) -> None:
        """Try once more to write the rows that wait; a warning says that they are lost."""
        num_rows = self._rows.num_waiting
        try:
            self._rows.write_again()
        except Exception as error:  # noqa: BLE001  # the end of a run must not fail because of them
            logger.warning(
                "%s could not be written to %s at the end either: %s", _rows(num_rows), FILE, in_words(error)
            )
        else:
            self._report_written(num_rows)

    def _epoch(self, epoch: int | None) -> int:
        if epoch is not None:
            return whole_number("epoch", epoch)
        if self._count.batch_idx == 0:
            raise MisuseError(
                "the epoch of the metrics is not known before the first step(): give epoch=0, for example."
            )
        return whole_number("epoch", self._count.epoch)

    def _report(self, moment: Moment, error: Exception) -> None:
        message = f"the metrics of {moment} could not be written to {FILE}: {in_words(error)}"
        if self._rows.is_waiting(moment):
            message += " They are kept in memory; the next log_metrics() and close() try again."
        if self._is_strict:
            raise WriteError(message) from error
        self._events.add(self._event(message, "error", moment))

    def _report_written(self, num_rows: int) -> None:
        if num_rows:
            message = f"{FILE} could be written again, with {_rows(num_rows)} that had to wait."
            self._events.resolve(self._event(message, "info", Moment(self._count.last_epoch)))

    def _event(self, message: str, severity: Severity, moment: Moment) -> Event:
        batch_idx = moment.batch_idx or self._count.batch_idx
        return Event(
            event="failed_metrics",
            severity=severity,
            message=message,
            batch_idx=batch_idx,
            batch_idx_end=batch_idx,
            epoch=moment.epoch,
            column=FILE,
        )


def _rows(number: int) -> str:
    return f"{number} row{'s' * (number != 1)}"


def check_metrics(metrics: Mapping[str, Metric]) -> None:
    """Raise MisuseError unless metrics map names of columns to scalars; a tensor is not read."""
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise MisuseError(f"metrics is {shown(metrics)}: give a mapping name -> number, such as {{'val_loss': loss}}.")
    for name, value in metrics.items():
        check_column_name(name)
        if name in _KEYS:
            raise MisuseError(f"a metric cannot be named {name!r}: give it as log_metrics(..., {name}={shown(value)}).")
        if not _is_scalar(value):
            raise MisuseError(_not_a_number(name, value))


def _is_scalar(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, np.ndarray | np.generic):
        return value.size == 1 and value.dtype.kind in _KINDS_OF_NUMBERS
    return value is None or isinstance(value, SupportsFloat)


def _as_float(name: str, value: Any) -> float | None:
    """Read a scalar; of a device tensor, this waits for the device."""
    try:
        return None if value is None else float(value.item() if isinstance(value, Tensor | np.ndarray) else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise MisuseError(_not_a_number(name, value)) from error


def _not_a_number(name: str, value: object) -> str:
    given = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else f"{shown(value)}"
    return f"metrics[{name!r}] is a {type(value).__name__} {given}: give one real number, such as its mean, or None."
