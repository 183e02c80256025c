"""Metrics of predictions of pairs that another training loop left in `epoch_000/val/metrics/eval_dump.csv`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from ava_pipeline.contract.arrays import float_columns, integers
from ava_pipeline.contract.finding import finite_or_null
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.read.eval_dump import PairFile, pair_files, read_pairs
from ava_pipeline.terminal import plain_table, printable, rounded

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """One set of pairs at the end of an epoch; of the baselines, the shares of pairs that they get right."""

    file: PairFile
    num_pairs: int
    accuracy: float  # share of pairs whose prediction is the label
    log_loss: float  # mean of -log of the probability of the label, softmax of the logits
    commoner_side: float  # baseline: always the label that most of these pairs have
    always_first: float  # baseline: always the first photo

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where a metric is not defined."""
        return {
            "file": str(self.file.path),
            "set": self.file.name,
            "epoch": self.file.epoch,
            "num_pairs": self.num_pairs,
            **finite_or_null({"accuracy": self.accuracy, "log_loss": self.log_loss}),
            "baselines": finite_or_null({"commoner_side": self.commoner_side, "always_first": self.always_first}),
        }


def evaluate_pairs(path: Path) -> list[PairMetrics]:
    """Evaluate each set of pairs of a run directory; none if it has none.

    Raise DamagedFileError if a file cannot be read, or leads out of the run.
    """
    layout = RunLayout(path)
    return [_evaluated(file, read_pairs(layout, file.path)) for file in pair_files(layout)]


def _evaluated(file: PairFile, rows: "pa.Table") -> PairMetrics:
    labels = integers(rows, "label")
    logits = np.column_stack(list(float_columns(rows, ["logit_0", "logit_1"]).values()))
    if not len(labels):
        return PairMetrics(file, 0, np.nan, np.nan, np.nan, np.nan)
    of_label = logits[np.arange(len(labels)), labels]
    share = float((labels == 0).mean())
    return PairMetrics(
        file=file,
        num_pairs=len(labels),
        accuracy=float((integers(rows, "prediction") == labels).mean()),
        log_loss=float((np.logaddexp(logits[:, 0], logits[:, 1]) - of_label).mean()),
        commoner_side=max(share, 1 - share),
        always_first=share,
    )


def pairs_table(files: Sequence[PairMetrics]) -> Table:
    """A line for each set of pairs, and the baselines beside it."""
    table = plain_table("Metrics of predictions of pairs")
    for name in ("set", "epoch", "pairs", "accuracy", "log-loss", "commoner side", "always first"):
        table.add_column(name, justify="left" if name == "set" else "right", no_wrap=True)
    for found in files:
        numbers = (found.accuracy, found.log_loss, found.commoner_side, found.always_first)
        texts = (str(found.file.epoch), str(found.num_pairs), *(rounded(number, 4) for number in numbers))
        table.add_row(Text(printable(found.file.name)), *texts)
    caption = "commoner side, always first: the accuracy of always giving the commoner label, and the first photo."
    table.caption, table.caption_justify = Text(caption, style="dim italic"), "left"
    return table
