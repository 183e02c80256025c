"""Two sets of predictions, image by image: which predicts better, how sure that is, and where they part."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.errors import MisuseError, PredictionsError
from ava_pipeline.evaluation.bootstrap import Interval, interval, resampled
from ava_pipeline.evaluation.evaluate import prediction_paths
from ava_pipeline.metrics import HIGHER_IS_BETTER, Metrics
from ava_pipeline.read.predictions import Floats, Predicted, read_predicted

NUM_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Image:
    """One image that both predict.

    Attributes:
        image_id: as it stands in the first file.
        gt_mean: its true mean score, of the first file.
        pred_mean: what the first predicts.
        other_mean: what the second predicts.
    """

    image_id: int | str
    gt_mean: float
    pred_mean: float
    other_mean: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two files of predictions on the images that both hold.

    Attributes:
        path: the first file.
        other_path: the second.
        num_images: in both.
        num_only: in the first alone.
        num_only_other: in the second alone.
        num_other_truth: whose true mean score is another one in the second.
        metrics: of the first, on the images in both.
        other_metrics: of the second, on the same.
        difference: first minus second, resample by resample of the same images.
        furthest: the images whose predicted mean scores differ most, the furthest first.
    """

    path: Path
    other_path: Path
    num_images: int
    num_only: int
    num_only_other: int
    num_other_truth: int
    metrics: Metrics
    other_metrics: Metrics
    difference: Interval
    furthest: tuple[Image, ...]

    def verdicts(self) -> dict[str, str]:
        """Of each metric: `better` or `worse`, where 0 lies outside of the interval, else `unclear`."""
        low, high = asdict(self.difference.low), asdict(self.difference.high)
        return {name: _verdict(low[name], high[name], name in HIGHER_IS_BETTER) for name in low}

    def differences(self) -> dict[str, float]:
        """Each metric of the first minus that of the second."""
        other = asdict(self.other_metrics)
        return {name: value - other[name] for name, value in asdict(self.metrics).items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where a figure is not defined."""
        return {
            "file": str(self.path),
            "against": str(self.other_path),
            "num_images": self.num_images,
            "num_only_in_file": self.num_only,
            "num_only_in_against": self.num_only_other,
            "num_with_other_truth": self.num_other_truth,
            "metrics": self.metrics.to_json(),
            "against_metrics": self.other_metrics.to_json(),
            "difference": Metrics(**self.differences()).to_json(),
            "difference_interval": self.difference.to_json(),
            "verdicts": self.verdicts(),
            "furthest": [_defined(asdict(image)) for image in self.furthest],
        }


def compare(path: Path, other: Path, *, num_resamples: int) -> Comparison:
    """Compare two files of predictions, or the last ones of two runs.

    Args:
        path: a Parquet file, or a run, of which the last epoch is taken: of its set `val`, or of its only one.
        other: likewise.
        num_resamples: of the bootstrap, 1 or more.

    Raises:
        NotARunError: there are no predictions.
        DamagedFileError: a file holds no predictions.
        PredictionsError: a file has no image ids, or one of them twice.
        MisuseError: the files have no image in common, or it is not clear which file of a run is meant.
    """
    one, two = (read_predicted(_last(place)) for place in (path, other))
    first, second = _shared(one, two)
    pair = _of(one, first), _of(two, second)
    resamples = resampled(pair, num_resamples)
    with np.errstate(invalid="ignore"):
        difference = {name: values - resamples[1][name] for name, values in resamples[0].items()}
    return Comparison(
        path=one.path,
        other_path=two.path,
        num_images=len(first),
        num_only=one.num_images - len(first),
        num_only_other=two.num_images - len(second),
        num_other_truth=int(np.sum(pair[0].gt_mean != pair[1].gt_mean)),
        metrics=pair[0].metrics(),
        other_metrics=pair[1].metrics(),
        difference=interval(difference),
        furthest=_furthest(*pair),
    )


def _last(path: Path) -> Path:
    """The file that a path stands for."""
    paths = prediction_paths(path)
    if path.is_file():
        return path
    files = prediction_files(RunLayout(paths[0].parents[1]))
    names = {file.name for file in files}
    name = "val" if "val" in names else names.pop() if len(names) == 1 else None
    if name is None:
        raise MisuseError(f"{path} holds {len(names)} sets of predictions, none of them named val; give a file of one.")
    return next(file.path for file in reversed(files) if file.name == name)


def _shared(one: Predicted, two: Predicted) -> tuple[list[int], list[int]]:
    """Where each file holds the images that both do, in the first one's order."""
    rows, others = _rows_by_id(one), _rows_by_id(two)
    shared = [image for image in rows if image in others]
    if not shared:
        raise MisuseError(
            f"{one.path} and {two.path} have no image in common; give predictions of the same set of images."
        )
    return [rows[image] for image in shared], [others[image] for image in shared]


def _rows_by_id(predicted: Predicted) -> Mapping[str, int]:
    """Ids as text, so that 953619 and "953619" are one image."""
    if predicted.image_ids is None:
        raise PredictionsError(
            f"{predicted.path} has no column image_id; without it no image can be told from another."
        )
    ids = predicted.image_ids.cast(pa.string()).to_pylist()
    rows = {image: row for row, image in enumerate(ids) if image is not None}
    if len(rows) < len(ids):
        raise PredictionsError(
            f"{predicted.path} holds {len(ids)} rows of {len(rows)} images; allowed is one row each."
        )
    return rows


def _of(predicted: Predicted, rows: list[int]) -> Predicted:
    """The same file, as if it held these rows only."""
    ids = predicted.image_ids
    return Predicted(
        path=predicted.path,
        image_ids=None if ids is None else ids.take(pa.array(rows)),
        pred=predicted.pred[rows],
        truth=predicted.truth[rows],
        pred_mean=predicted.pred_mean[rows],
        gt_mean=predicted.gt_mean[rows],
    )


def _furthest(one: Predicted, two: Predicted) -> tuple[Image, ...]:
    apart: Floats = np.abs(one.pred_mean - two.pred_mean)
    rows = np.argsort(-apart, kind="stable")[:NUM_SHOWN]  # nan stands last
    ids = one.image_ids
    return tuple(
        Image(
            image_id=_id(ids, int(row)),
            gt_mean=float(one.gt_mean[row]),
            pred_mean=float(one.pred_mean[row]),
            other_mean=float(two.pred_mean[row]),
        )
        for row in rows
        if apart[row] > 0
    )


def _id(ids: Any, row: int) -> int | str:
    value = ids[row].as_py()
    return value if isinstance(value, int) else str(value)


def _verdict(low: float, high: float, higher_is_better: bool) -> str:  # noqa: FBT001  # one of two ways round
    if not (low > 0 or high < 0):
        return "unclear"
    return "better" if (low > 0) == higher_is_better else "worse"


def _defined(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in values.items()
    }
