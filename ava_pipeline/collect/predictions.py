"""Predictions of one validation: added a batch at a time, written as one complete file."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.builtin_tables import NUM_SCORES, SCORES, predictions_schema
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.contract.parquet import write_checked
from ava_pipeline.contract.tables import check_column_name
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import AvaPipelineError, DamagedFileError, MisuseError, PredictionsError
from ava_pipeline.logs import logger
from ava_pipeline.write.event_log import EventLog

MAX_SUM_ERROR = 1e-2
MAX_SHOWN_IDS = 5
MAX_WAITING_BYTES = 256 * 2**20

ImageIds: TypeAlias = Tensor | Sequence[object]


class EpochPredictions:
    """A `with` block that collects predictions: on exit the file is complete, after an exception it does not exist.

    Callbacks, which a `with` block cannot span, call `begin` and `end`, or `drop` after an exception; nothing is
    written unless `end` is called. After `end` or `drop`, `begin` may be called again.

    `is_written` is called at the end of the block; False writes nothing (another rank, or a child forked in the block).
    `report` is called with the file's stem and the reason if predictions could not be written, and may raise.
    """

    def __init__(
        self,
        path: Path,
        *,
        is_written: Callable[[], bool],
        write: Callable[[Path, pa.Table], None],
        report: Callable[[str, AvaPipelineError], None],
    ) -> None:
        self._path = path
        self._is_written = is_written
        self._write_file = write
        self._report = report
        self._has_begun = False
        self._ids: list[Tensor | list[int | str]] = []
        self._pred: list[Tensor] = []
        self._gt: list[Tensor] = []

    def begin(self) -> Self:
        """Begin to collect, without anything that was added before; returns the object itself.

        Example:
            predictions = telemetry.val_predictions(epoch).begin()
        """
        self.drop()
        self._has_begun = True
        return self

    def end(self) -> None:
        """Write what was added since `begin`, as the end of the `with` block does.

        Raises:
            MisuseError: it was not begun.
            PredictionsError: the file could not be written, and `on_error="raise"`.
        """
        self._check_begun("end")
        try:
            if self._is_written():
                self._write_or_report()
        finally:
            self.drop()

    def drop(self) -> None:
        """Forget what was added since `begin`, and write nothing: for a validation that did not come to its end."""
        self._has_begun = False
        self._ids, self._pred, self._gt = [], [], []

    def add(self, image_ids: ImageIds, pred_dist: Tensor, gt: Tensor) -> None:
        """Add a batch, without waiting for the device.

        Args:
            image_ids: B integers or strings; a tensor, on any device, is read when the block ends.
            pred_dist: (B, 10), any floating dtype: the predicted share of each score, summing to 1.
            gt: (B, 10): votes for each score, or the true shares.

        Raises:
            MisuseError: an argument that is not a tensor, shapes that do not match, ids that are neither integers nor
                strings, or neither a `with` block nor `begin` came before.
        """
        self._check_begun("add")
        ids = as_ids(image_ids)
        pred_dist, gt = _as_tensor("pred_dist", pred_dist), _as_tensor("gt", gt)
        expected = (len(ids), NUM_SCORES)
        for name, given in (("pred_dist", pred_dist), ("gt", gt)):
            if tuple(given.shape) != expected:
                raise MisuseError(
                    f"{name} has shape {tuple(given.shape)}; {len(ids)} images need {expected}: "
                    f"a row for each image, a column for each score from 1 to {NUM_SCORES}."
                )
        # Copies: the caller may reuse its tensors before the epoch ends.
        self._ids.append(ids)
        self._pred.append(pred_dist.detach().clone())
        self._gt.append(gt.detach().clone())

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()
        else:
            self.drop()

    def _check_begun(self, method: str) -> None:
        if not self._has_begun:
            raise MisuseError(
                f"{method}() was called outside a `with` block of val_predictions(): use one, or call begin() before."
            )

    def _write_or_report(self) -> None:
        try:
            self._write()
        except Exception as reason:  # noqa: BLE001  # an epoch's training is worth more than its predictions
            self._report(self._path.stem, PredictionsError(f"{self._path} was not written: {reason}"))

    def _write(self) -> None:
        ids = [one for batch in self._ids for one in (batch.tolist() if isinstance(batch, Tensor) else batch)]
        if not ids:
            raise PredictionsError("no predictions were added. Call add() for every batch of the validation loader.")
        self._write_file(self._path, predictions_table(ids, _on_host(self._pred), _on_host(self._gt)))


class PredictionFiles:
    """Writes the files of predictions; a file that the disk refused waits in memory for `write_again`.

    `is_strict` raises at the end of the block rather than record an event. `max_bytes` limits all files that wait.
    """

    def __init__(
        self,
        layout: RunLayout,
        events: EventLog,
        count: BatchCount,
        *,
        is_strict: bool = False,
        max_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._layout = layout
        self._events = events
        self._count = count
        self._is_strict = is_strict
        self._max_bytes = max_bytes
        self._waiting: dict[Path, pa.Table] = {}
        self._reported: set[str] = set()

    def block(self, moment: Moment, name: str, *, is_written: Callable[[], bool]) -> EpochPredictions:
        """The `with` block that writes one file; raise MisuseError if the name cannot be part of the file's name."""
        check_column_name(name)
        if "/" in name:
            raise MisuseError(f"predictions cannot be named {name!r}: give a name without '/', such as 'val_ema'.")
        path = self._layout.epoch_predictions(moment.epoch, name, moment.batch_idx)
        return EpochPredictions(path, is_written=is_written, write=self.write, report=self.report)

    def write(self, path: Path, rows: pa.Table) -> None:
        """Write one file; a complete older file of the same name is copied to `superseded/` first.

        Raise PredictionsError if the disk refused the file or read back other bytes, or a link leads out of the run
        directory. The message says whether the rows wait for `write_again`.
        """
        self._waiting.pop(path, None)
        try:
            self._replace(path, rows)
        except (OSError, DamagedFileError) as error:
            reason = str(error).removesuffix(".")
            num_bytes = sum(table.nbytes for table in self._waiting.values())
            if num_bytes + rows.nbytes > self._max_bytes:
                raise PredictionsError(
                    f"{reason}. {num_bytes} bytes of other files are already waiting, so these rows are lost."
                ) from error
            self._waiting[path] = rows
            raise PredictionsError(f"{reason}. They are kept in memory, and close() tries again.") from error

    def write_again(self) -> None:
        """Try once more to write the files that wait; a warning names each that is lost."""
        for path, rows in self._waiting.items():
            try:
                self._replace(path, rows)
            except (OSError, DamagedFileError) as error:
                logger.warning("%s could not be written at the end either, and is lost: %s.", path, error)
            else:
                logger.info("%s, which could not be written before, has been written now.", path)
        self._waiting.clear()

    def report(self, name: str, error: AvaPipelineError) -> None:
        """Record that the predictions of the file with this stem were not written; raise the error if strict."""
        if self._is_strict:
            raise error
        batch_idx = self._count.batch_idx
        if name in self._reported:  # the log itself shows only the first event of a name
            logger.warning("telemetry of %s: batch %d: %s", self._layout.root, batch_idx, error)
        self._reported.add(name)
        self._events.add(
            Event(
                event="failed_predictions",
                severity="error",
                message=str(error),
                batch_idx=batch_idx,
                batch_idx_end=batch_idx,
                epoch=self._count.last_epoch,
                column=name,
            )
        )

    def _replace(self, path: Path, rows: pa.Table) -> None:
        check_inside(self._layout)
        with written_aside(path) as file:
            write_checked(file, rows)
            _copy_older(path)


def _copy_older(path: Path) -> None:
    """Copy the file, rather than move it, so that a file of this name exists at any time."""
    if path.exists():
        folder = path.parent / "superseded"
        number = sum(1 for _ in folder.glob(f"{path.stem}.*{path.suffix}")) + 1
        with path.open("rb") as older, written_aside(folder / f"{path.stem}.{number}{path.suffix}") as copy:
            shutil.copyfileobj(older, copy)


def predictions_table(image_ids: Sequence[object], pred: Floats, gt: Floats) -> pa.Table:
    """Make the file's table; raise PredictionsError if an image was added twice, or a row is not a distribution.

    Rows of `pred`, (N, 10), sum to 1 within `MAX_SUM_ERROR` and are renormalised here; `gt`, (N, 10), may hold votes.
    """
    ids = id_column(image_ids)
    _check_ids(ids.to_pylist())  # as they are stored: 1 and "1" are the same image
    check_distributions(image_ids, pred, "predicted", "Give a softmax over the ten scores.")
    check_distributions(image_ids, gt, "true", "Give votes, or shares that sum to 1.", allows_votes=True)
    pred_total, gt_total = pred.sum(axis=1), gt.sum(axis=1)
    columns = [
        ids,
        pa.array(mean_scores(pred)),
        pa.array(mean_scores(gt)),
        *(pa.array(column) for column in (pred / pred_total[:, None]).T.astype(np.float32)),
        *(pa.array(column) for column in (gt / gt_total[:, None]).T.astype(np.float32)),
    ]
    schema = predictions_schema(integer_ids=pa.types.is_integer(ids.type))
    return pa.Table.from_arrays(columns, schema=schema)


def mean_scores(given: Floats) -> Floats:
    """The mean score of each row of votes or shares, (N, 10): sums of whole votes are exact, so that 5 stays 5."""
    means: Floats = (given @ np.array(SCORES, dtype=np.float64)) / given.sum(axis=1)
    return means


def as_ids(image_ids: ImageIds) -> Tensor | list[int | str]:
    """A batch's ids to keep: a copy of a tensor, which is not read, or a list; raise MisuseError if wrong."""
    return _tensor_ids(image_ids) if isinstance(image_ids, Tensor) else _plain_ids(image_ids)


def _tensor_ids(image_ids: Tensor) -> Tensor:
    is_whole = image_ids.dtype != torch.bool and not (image_ids.is_floating_point() or image_ids.is_complex())
    if not is_whole or image_ids.ndim != 1:
        raise MisuseError(
            f"image ids of {image_ids.dtype} and shape {tuple(image_ids.shape)} cannot be stored: "
            "give 64-bit integers or strings, one for each image."
        )
    return image_ids.detach().clone()


def _plain_ids(image_ids: Sequence[object] | NDArray[Any]) -> list[int | str]:
    given = image_ids.tolist() if isinstance(image_ids, np.ndarray) else image_ids
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise MisuseError(
            f"image ids are {given!r}, which cannot be stored: give a list or a tensor of 64-bit integers or strings, "
            "one for each image."
        )
    ids = [int(one) if isinstance(one, np.integer) else one for one in given]
    wrong = [one for one in ids if not isinstance(one, int | str) or isinstance(one, bool)]
    wrong += [one for one in ids if isinstance(one, int) and not -(2**63) <= one < 2**63]
    if wrong:
        raise MisuseError(f"image ids such as {wrong[0]!r} cannot be stored: give 64-bit integers or strings.")
    return [one for one in ids if isinstance(one, int | str)]


def _as_tensor(name: str, given: object) -> Tensor:
    if isinstance(given, Tensor):
        return given
    try:
        return torch.as_tensor(given, device="cpu")  # named, because the user may have set another default device
    except (TypeError, ValueError, RuntimeError) as error:
        raise MisuseError(
            f"{name} is a {type(given).__name__} and cannot be made a tensor ({error}): give a tensor with a row for "
            f"each image and a column for each score from 1 to {NUM_SCORES}."
        ) from error


def _on_host(parts: Sequence[Tensor]) -> Floats:
    host: Floats = torch.cat(list(parts)).cpu().to(torch.float64).numpy()
    return host


def id_column(image_ids: Sequence[object]) -> "pa.Array[Any]":
    """The ids as they are stored: int64 if all of them are integers, else strings."""
    if all(isinstance(one, int) for one in image_ids):
        return pa.array(image_ids, pa.int64())
    return pa.array([str(one) for one in image_ids], pa.string())


def _check_ids(image_ids: Sequence[object]) -> None:
    known: set[object] = set()
    repeated = [one for one in image_ids if one in known or known.add(one)]  # type: ignore[func-returns-value]  # add returns None
    if repeated:
        shown = ", ".join(map(str, repeated[:MAX_SHOWN_IDS])) + (", ..." if len(repeated) > MAX_SHOWN_IDS else "")
        raise PredictionsError(
            f"{len(repeated)} images were added more than once, such as {shown}. "
            "Validate without a sampler that repeats images, and give each epoch its own block."
        )


def check_distributions(
    image_ids: Sequence[object], given: Floats, what: str, remedy: str, *, allows_votes: bool = False
) -> None:
    """Raise PredictionsError, with the remedy, if a row of `given`, (N, 10), is neither a distribution nor votes."""
    sums = given.sum(axis=1)
    is_good = np.abs(sums - 1) <= MAX_SUM_ERROR
    if allows_votes:
        is_good |= (given == np.floor(given)).all(axis=1) & (sums > 0) & np.isfinite(sums)
    is_good &= (given >= 0).all(axis=1)
    if not is_good.all():
        first = int(np.argmin(is_good))
        raise PredictionsError(
            f"{int((~is_good).sum())} of {len(given)} {what} distributions do not sum to 1 or have negative shares, "
            f"such as that of image {image_ids[first]!r}: {given[first].tolist()} sums to {sums[first]}. {remedy}"
        )
