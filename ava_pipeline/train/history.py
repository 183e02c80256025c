"""metrics.csv: one row an epoch."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path

from ava_pipeline.contract.files import written_aside
from ava_pipeline.metrics import Metrics
from ava_pipeline.train.refused import told_if_refused

COLUMNS = ("epoch", "train_loss", *(field.name for field in fields(Metrics)))


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch reached.

    Attributes:
        epoch: 0-based.
        train_loss: mean over the epoch's finite batch losses; nan where there were none.
        metrics: of the validation images.
    """

    epoch: int
    train_loss: float
    metrics: Metrics

    def to_row(self) -> dict[str, float]:
        """Column -> value, in file order."""
        return {"epoch": self.epoch, "train_loss": self.train_loss, **asdict(self.metrics)}

    @classmethod
    def from_row(cls, row: dict[str, float]) -> "EpochResult":
        """Read back what `to_row` gave."""
        metrics = Metrics(**{field.name: row[field.name] for field in fields(Metrics)})
        return cls(epoch=int(row["epoch"]), train_loss=row["train_loss"], metrics=metrics)


def append_result(path: Path, result: EpochResult) -> None:
    """Add one row, in one write; the header comes with the first.

    Raises:
        TrainingError: the disk refused.
    """
    with told_if_refused(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(_lines([result], header=file.tell() == 0))


def write_results(path: Path, results: Sequence[EpochResult]) -> None:
    """Replace the file by these rows: complete, or not at all.

    Raises:
        TrainingError: the disk refused.
    """
    with told_if_refused(path), written_aside(path) as file:
        file.write(_lines(results, header=True).encode())


def _lines(results: Sequence[EpochResult], *, header: bool) -> str:
    """LF, no quotes, floats in the shortest form that reads back to the same bits."""
    text = StringIO()
    rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        rows.writeheader()
    rows.writerows(result.to_row() for result in results)
    return text.getvalue()
