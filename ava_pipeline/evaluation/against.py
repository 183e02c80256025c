"""Compare two sets of predictions image by image: which one is better, how sure that is, and where they differ most."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ava_pipeline.contract.finding import finite_or_null
from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.errors import MisuseError, PredictionsError
from ava_pipeline.evaluation.evaluate import Interval, interval, method_text, prediction_paths, resampled
from ava_pipeline.metrics import HIGHER_IS_BETTER, Metrics
from ava_pipeline.read.predictions import Predicted, read_predicted
from ava_pipeline.terminal import metric_text, metric_title, plain_table, printable, rounded

if TYPE_CHECKING:
    from ava_pipeline.contract.arrays import Floats

NUM_SHOWN = 10
_COLORS = {"better": "green", "worse": "red", "unclear": "dim"}


@dataclass(frozen=True, slots=True)
class Image:
    """An image in both files; its id and its true mean score are those of the first file."""

    image_id: int | str
    gt_mean: float
    pred_mean: float
    other_mean: float  # predicted by the second file


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two files of predictions, compared on the images that both hold."""

    path: Path
    other_path: Path
    num_images: int  # in both files; all metrics are computed on these images
    num_only: int  # images in the first file only
    num_only_other: int
    num_other_truth: int  # images whose true mean score differs between the files
    metrics: Metrics
    other_metrics: Metrics
    difference: Interval  # first minus second, resample by resample of the same images
    furthest: tuple[Image, ...]  # whose predicted mean scores differ most, largest difference first

    def verdicts(self) -> dict[str, str]:
        """For each metric `better` or `worse` if 0 is outside its interval, else `unclear`."""
        low, high = asdict(self.difference.low), asdict(self.difference.high)
        return {name: _verdict(low[name], high[name], name in HIGHER_IS_BETTER) for name in low}

    def differences(self) -> dict[str, float]:
        """Each metric of the first file minus that of the second."""
        other = asdict(self.other_metrics)
        return {name: value - other[name] for name, value in asdict(self.metrics).items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where a metric is not defined."""
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
            "furthest": [finite_or_null(asdict(image)) for image in self.furthest],
        }


def compare(path: Path, other: Path, *, num_resamples: int) -> Comparison:
    """Compare two files of predictions, or the last epochs of two runs.

    A path is a Parquet file or a run directory; of a run, the set `val` or else its only set is compared.
    `num_resamples` is 1 or more.

    Raises:
        NotARunError: there are no predictions at a path.
        DamagedFileError: a file holds no predictions.
        PredictionsError: a file has no image ids, or the same id twice.
        MisuseError: the files have no image in common, or a run has several sets of predictions and none named val.
    """
    first, second = (read_predicted(_last_epoch(place)) for place in (path, other))
    rows, other_rows = _shared_rows(first, second)
    pair = _take(first, rows), _take(second, other_rows)
    resamples = resampled(pair, num_resamples)
    with np.errstate(invalid="ignore"):
        difference = {name: values - resamples[1][name] for name, values in resamples[0].items()}
    return Comparison(
        path=first.path,
        other_path=second.path,
        num_images=len(rows),
        num_only=first.num_images - len(rows),
        num_only_other=second.num_images - len(other_rows),
        num_other_truth=int(np.sum(pair[0].gt_mean != pair[1].gt_mean)),
        metrics=pair[0].metrics(),
        other_metrics=pair[1].metrics(),
        difference=interval(difference),
        furthest=_furthest(*pair),
    )


def _last_epoch(path: Path) -> Path:
    paths = prediction_paths(path)
    if path.is_file():
        return path
    files = prediction_files(RunLayout(paths[0].parents[1]))
    names = {file.name for file in files}
    name = "val" if "val" in names else names.pop() if len(names) == 1 else None
    if name is None:
        raise MisuseError(
            f"{path} holds {len(names)} sets of predictions, none of them named val; give the file of one of them."
        )
    return next(file.path for file in reversed(files) if file.name == name)


def _shared_rows(first: Predicted, second: Predicted) -> tuple[list[int], list[int]]:
    """The rows of the images that both files hold, in the order of the first file."""
    rows, other_rows = _rows_by_id(first), _rows_by_id(second)
    shared = [image for image in rows if image in other_rows]
    if not shared:
        raise MisuseError(
            f"{first.path} and {second.path} have no image in common; give predictions of the same set of images."
        )
    return [rows[image] for image in shared], [other_rows[image] for image in shared]


def _rows_by_id(predicted: Predicted) -> Mapping[str, int]:
    """Ids as text, so that 953619 and "953619" are the same image."""
    if predicted.image_ids is None:
        raise PredictionsError(f"{predicted.path} has no column image_id; images are matched by it.")
    ids = predicted.image_ids.cast(pa.string()).to_pylist()
    rows = {image: row for row, image in enumerate(ids) if image is not None}
    if len(rows) < len(ids):
        raise PredictionsError(
            f"{predicted.path}: expected one row for each image, got {len(ids)} rows of {len(rows)} images."
        )
    return rows


def _take(predicted: Predicted, rows: list[int]) -> Predicted:
    ids = predicted.image_ids
    return Predicted(
        path=predicted.path,
        image_ids=None if ids is None else ids.take(pa.array(rows)),
        pred=predicted.pred[rows],
        truth=predicted.truth[rows],
        pred_mean=predicted.pred_mean[rows],
        gt_mean=predicted.gt_mean[rows],
    )


def _furthest(first: Predicted, second: Predicted) -> tuple[Image, ...]:
    distance: Floats = np.abs(first.pred_mean - second.pred_mean)
    rows = np.argsort(-distance, kind="stable")[:NUM_SHOWN]  # nan is last
    ids = first.image_ids
    return tuple(
        Image(
            image_id=_image_id(ids, int(row)),
            gt_mean=float(first.gt_mean[row]),
            pred_mean=float(first.pred_mean[row]),
            other_mean=float(second.pred_mean[row]),
        )
        for row in rows
        if distance[row] > 0
    )


def _image_id(ids: Any, row: int) -> int | str:
    value = ids[row].as_py()
    return value if isinstance(value, int) else str(value)


def _verdict(low: float, high: float, higher_is_better: bool) -> str:  # noqa: FBT001  # a property of the metric
    if not (low > 0 or high < 0):
        return "unclear"
    return "better" if (low > 0) == higher_is_better else "worse"


def show_comparison(found: Comparison, *, generated: bool) -> None:
    """Print the metrics of both files and their differences, then the images that differ most."""
    console = Console()
    console.print(_comparison_table(found, generated=generated))
    for line in _notes(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.furthest:
        console.print()
        console.print(_furthest_table(found))


def _comparison_table(found: Comparison, *, generated: bool) -> Table:
    """A line for each metric: of A, of B, the difference and its interval, and the verdict."""
    table = plain_table(f"Two sets of predictions on {found.num_images} images", generated=generated)
    for name in ("metric", "A", "B", "A - B", "from", "to", "A is"):
        table.add_column(name, justify="left" if name in {"metric", "A is"} else "right", no_wrap=True)
    low, high, first, second = (
        asdict(metrics) for metrics in (found.difference.low, found.difference.high, found.metrics, found.other_metrics)
    )
    for name, difference in found.differences().items():
        verdict = found.verdicts()[name]
        values = (metric_text(name, metrics[name]) for metrics in (first, second))
        signed = (rounded(value, sign=True) for value in (difference, low[name], high[name]))
        table.add_row(metric_title(name), *values, *signed, Text(verdict, style=_COLORS[verdict]))
    return table


def _notes(found: Comparison) -> Iterator[str]:
    """The lines below the table: the files, the images that were left out, and the method of the intervals."""
    yield f"A: {printable(str(found.path))}"
    yield f"B: {printable(str(found.other_path))}"
    if found.num_only or found.num_only_other:
        yield f"Left out: {found.num_only} images in A alone, {found.num_only_other} in B alone."
    if found.num_other_truth:
        yield (
            f"The true mean score of {found.num_other_truth} images differs between A and B; "
            "each file is compared with its own."
        )
    yield f"from, to: {method_text(found.difference)}, the same images drawn for A and B."


def _furthest_table(found: Comparison) -> Table:
    table = plain_table("The images on which they differ most")
    for name in ("image", "true mean", "A", "B", "A - B"):
        table.add_column(name, justify="left" if name == "image" else "right", no_wrap=True)
    for image in found.furthest:
        means = (rounded(mean, 3) for mean in (image.gt_mean, image.pred_mean, image.other_mean))
        difference = rounded(image.pred_mean - image.other_mean, 3, sign=True)
        table.add_row(Text(printable(str(image.image_id))), *means, difference)
    return table
