"""One epoch's validation predictions: collected a batch at a time, written as one complete file."""

import logging
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

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet import write_checked
from ava_pipeline.contract.predictions import NUM_SCORES, SCORES, predictions_schema
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import AvaPipelineError, DamagedFileError, MisuseError, PredictionsError

MAX_SUM_ERROR = 1e-2
MAX_SHOWN_IDS = 5

Floats: TypeAlias = NDArray[np.float64]
ImageIds: TypeAlias = Tensor | Sequence[object]


class EpochPredictions:
    """Collects predictions; on leaving the block the file is there, complete, or not at all after an exception.

    Args:
        path: the Parquet file.
        is_written: asked when the block ends; False writes nothing (any rank but 0, a child forked in the block).
        write: puts a table into a file.
        on_trouble: told the file's name and why predictions could not be written; may raise.
    """

    def __init__(
        self,
        path: Path,
        *,
        is_written: Callable[[], bool],
        write: Callable[[Path, pa.Table], None],
        on_trouble: Callable[[str, AvaPipelineError], None],
    ) -> None:
        self._path = path
        self._is_written = is_written
        self._write_file = write
        self._on_trouble = on_trouble
        self._ids: list[Tensor | list[int | str]] = []
        self._pred: list[Tensor] = []
        self._gt: list[Tensor] = []

    def add(self, image_ids: ImageIds, pred_dist: Tensor, gt: Tensor) -> None:
        """Take one batch, without waiting for the device.

        Args:
            image_ids: B integers or strings; a tensor, on any device, is read when the block ends.
            pred_dist: (B, 10), any floating dtype: the predicted share of each score, summing to 1.
            gt: (B, 10): votes for each score, or the true shares.

        Raises:
            MisuseError: no tensors, shapes that don't fit together, or ids that are neither integers nor texts.
        """
        ids = _tensor_ids(image_ids) if isinstance(image_ids, Tensor) else _plain_ids(image_ids)
        pred_dist, gt = _as_tensor("pred_dist", pred_dist), _as_tensor("gt", gt)
        expected = (len(ids), NUM_SCORES)
        for name, given in (("pred_dist", pred_dist), ("gt", gt)):
            if tuple(given.shape) != expected:
                raise MisuseError(
                    f"{name} has shape {tuple(given.shape)}; {len(ids)} images need {expected}: "
                    f"a row an image, a column a score from 1 to {NUM_SCORES}."
                )
        # Copies: the caller may reuse its tensors before the epoch ends.
        self._ids.append(ids)
        self._pred.append(pred_dist.detach().clone())
        self._gt.append(gt.detach().clone())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._is_written():
            try:
                self._write()
            except Exception as trouble:  # noqa: BLE001  # an epoch's training is worth more than its predictions
                told = PredictionsError(f"{self._path} was not written: {trouble}")
                self._on_trouble(self._path.stem, told)

    def _write(self) -> None:
        ids = [one for batch in self._ids for one in (batch.tolist() if isinstance(batch, Tensor) else batch)]
        if not ids:
            raise PredictionsError("no predictions were added. Call add() for every batch of the validation loader.")
        rows = predictions_table(ids, _on_host(self._pred), _on_host(self._gt))
        self._write_file(self._path, rows)


def predictions_table(image_ids: Sequence[object], pred: Floats, gt: Floats) -> pa.Table:
    """Make the file's table.

    Args:
        image_ids: N different integers or strings.
        pred: (N, 10) float64, rows summing to 1 within `MAX_SUM_ERROR`; renormalised here.
        gt: (N, 10) float64, votes or shares.

    Raises:
        PredictionsError: an image twice, or rows that are no distributions.
    """
    ids = _id_column(image_ids)
    _check_ids(ids.to_pylist())  # as they are stored: 1 and "1" are one image
    _check_distributions(image_ids, pred, "predicted", "Give a softmax over the ten scores.")
    _check_distributions(image_ids, gt, "true", "Give votes, or shares that sum to 1.", allows_votes=True)
    # Sums of whole votes are exact, so that a mean of exactly 5 stays 5.
    pred_total, gt_total = pred.sum(axis=1), gt.sum(axis=1)
    scores = np.array(SCORES, dtype=np.float64)
    columns = [
        ids,
        pa.array((pred @ scores) / pred_total),
        pa.array((gt @ scores) / gt_total),
        *(pa.array(column) for column in (pred / pred_total[:, None]).T.astype(np.float32)),
        *(pa.array(column) for column in (gt / gt_total[:, None]).T.astype(np.float32)),
    ]
    schema = predictions_schema(integer_ids=pa.types.is_integer(ids.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _as_tensor(name: str, given: object) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MisuseError(
            f"{name} is a {type(given).__name__} that is no tensor ({error}): give one of a row an image, "
            f"a column a score from 1 to {NUM_SCORES}."
        ) from error


def _tensor_ids(image_ids: Tensor) -> Tensor:
    is_whole = image_ids.dtype != torch.bool and not (image_ids.is_floating_point() or image_ids.is_complex())
    if not is_whole or image_ids.ndim != 1:
        raise MisuseError(
            f"image ids of {image_ids.dtype} and shape {tuple(image_ids.shape)} cannot be kept: "
            "give 64-bit integers or texts, one an image."
        )
    return image_ids.detach().clone()


def _plain_ids(image_ids: Sequence[object] | NDArray[Any]) -> list[int | str]:
    given = image_ids.tolist() if isinstance(image_ids, np.ndarray) else image_ids
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise MisuseError(
            f"image ids are {given!r}, which cannot be kept: give a list or a tensor of 64-bit integers or texts, "
            "one an image."
        )
    ids = [int(one) if isinstance(one, np.integer) else one for one in given]
    wrong = [one for one in ids if not isinstance(one, int | str) or isinstance(one, bool)]
    wrong += [one for one in ids if isinstance(one, int) and not -(2**63) <= one < 2**63]
    if wrong:
        raise MisuseError(f"image ids such as {wrong[0]!r} cannot be kept: give 64-bit integers or texts.")
    return [one for one in ids if isinstance(one, int | str)]


def _on_host(parts: Sequence[Tensor]) -> Floats:
    host: Floats = torch.cat(list(parts)).cpu().to(torch.float64).numpy()
    return host


def _check_ids(image_ids: Sequence[object]) -> None:
    seen: set[object] = set()
    twice = [one for one in image_ids if one in seen or seen.add(one)]  # type: ignore[func-returns-value]  # add is None
    if twice:
        raise PredictionsError(
            f"{len(twice)} images were added more than once, such as {_shown(twice)}. "
            "Validate without a sampler that repeats images, and give each epoch a block of its own."
        )


def _id_column(image_ids: Sequence[object]) -> "pa.Array[Any]":
    if all(isinstance(one, int) for one in image_ids):
        return pa.array(image_ids, pa.int64())
    return pa.array([str(one) for one in image_ids], pa.string())


def _check_distributions(
    image_ids: Sequence[object], given: Floats, what: str, remedy: str, *, allows_votes: bool = False
) -> None:
    sums = given.sum(axis=1)
    is_good = np.abs(sums - 1) <= MAX_SUM_ERROR
    if allows_votes:
        is_good |= (given == np.floor(given)).all(axis=1) & (sums > 0) & np.isfinite(sums)
    is_good &= (given >= 0).all(axis=1)
    if not is_good.all():
        first = int(np.argmin(is_good))
        raise PredictionsError(
            f"{int((~is_good).sum())} {what} distributions of {len(given)} do not sum to 1 or have negative shares, "
            f"such as that of image {image_ids[first]!r}: {given[first].tolist()} sums to {sums[first]}. {remedy}"
        )


def _shown(ids: Sequence[object]) -> str:
    shown = ", ".join(map(str, ids[:MAX_SHOWN_IDS]))
    return f"{shown}, ..." if len(ids) > MAX_SHOWN_IDS else shown


_log = logging.getLogger("ava_pipeline")

MAX_KEPT_BYTES = 256 * 2**20


class PredictionFiles:
    """Writes epochs' files; those that could not be written wait for `write_again`, as long as memory permits.

    Args:
        max_bytes: of all that waits.
    """

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[Path, pa.Table] = {}

    def write(self, path: Path, rows: pa.Table) -> None:
        """Write one file; an older one of the name is moved to `superseded/` beside it, once the new one is whole.

        Raises:
            PredictionsError: the disk refused, gave back other bytes, or a name leads out of the run directory; says
                whether the rows are kept.
        """
        self._kept.pop(path, None)
        try:
            _replace(path, rows)
        except (OSError, DamagedFileError) as error:
            reason = str(error).removesuffix(".")
            waiting = sum(table.nbytes for table in self._kept.values())
            if waiting + rows.nbytes > self._max_bytes:
                raise PredictionsError(
                    f"{reason}. {waiting} bytes of others wait already, so these are gone."
                ) from error
            self._kept[path] = rows
            raise PredictionsError(f"{reason}. They are kept in memory, and close() tries again.") from error

    def write_again(self) -> None:
        """Try once more what waits; what the disk does not take now is gone, and a warning names it."""
        for path, rows in self._kept.items():
            try:
                _replace(path, rows)
            except (OSError, DamagedFileError) as error:
                _log.warning("%s was not written at the end either, and is lost: %s.", path, error)
            else:
                _log.info("%s, which the disk did not take before, is written now.", path)
        self._kept.clear()


def _replace(path: Path, rows: pa.Table) -> None:
    check_inside(RunLayout(path.parents[1]))
    with written_aside(path) as file:
        write_checked(file, rows)
        _keep_older(path)


def _keep_older(path: Path) -> None:
    """A copy, so that there is a file of the name at any moment."""
    if path.exists():
        folder = path.parent / "superseded"
        number = sum(1 for _ in folder.glob(f"{path.stem}.*{path.suffix}")) + 1
        with path.open("rb") as older, written_aside(folder / f"{path.stem}.{number}{path.suffix}") as copy:
            shutil.copyfileobj(older, copy)
