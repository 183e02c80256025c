"""Predictions of pairs that another training loop left behind: `epoch_000/val/metrics/eval_dump.csv`.

Each row is a pair of photos: `image1, image2, winner, pred, logit0, logit1`, and more about the pair. Class 0 is that
the first photo wins.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.untrusted import check_csv_size, check_name
from ava_pipeline.errors import DamagedFileError

FILE = "eval_dump.csv"
_FOLDER = re.compile(r"epoch_(\d{1,9})")
_OUR_NAMES = {"winner": "label", "pred": "prediction", "logit0": "logit_0", "logit1": "logit_1"}
_TYPES = {
    "image1": pa.string(),
    "image2": pa.string(),
    "series_id": pa.string(),
    "label": pa.int64(),
    "prediction": pa.int64(),
    "logit_0": pa.float64(),
    "logit_1": pa.float64(),
}
_NEEDED = ("image1", "image2", "label", "logit_0", "logit_1")
CORRECT = "correct"


class PairFile(NamedTuple):
    """The predictions of a set of pairs at the end of an epoch."""

    name: str
    epoch: int  # 0-based
    path: Path


def pair_files(layout: RunLayout) -> list[PairFile]:
    """List a run's predictions of pairs by set and epoch."""
    found = []
    for path in layout.root.glob(f"epoch_*/*/metrics/{FILE}"):
        match = _FOLDER.fullmatch(path.parents[2].name)
        if match is not None:
            found.append(PairFile(path.parents[1].name, int(match[1]), path))
    return sorted(found)


def read_pairs(layout: RunLayout, path: Path) -> pa.Table:
    """Read predictions of pairs: image1, image2, series_id, label, prediction, logit_0, logit_1 and correct.

    `prediction` is the class with the larger logit, 0 if they are equal, as the file has it; columns beyond are left
    out. Raise DamagedFileError if the file cannot be read or lacks these columns.
    """
    check_name(layout, path)
    try:
        check_csv_size(path)
        types = {name: _TYPES[_OUR_NAMES.get(name, name)] for name in (*_OUR_NAMES, *_TYPES)}
        rows = csv.read_csv(path, csv.ReadOptions(use_threads=False), None, csv.ConvertOptions(column_types=types))
    except (OSError, pa.ArrowException) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}. Restore it, or move it away.") from error
    rows = rows.rename_columns([_OUR_NAMES.get(name, name) for name in rows.column_names])
    missing = [name for name in _NEEDED if name not in rows.column_names]
    if missing:
        raise DamagedFileError(f"{path}: expected predictions of pairs, but it has no columns {', '.join(missing)}.")
    if any(label not in {0, 1} for label in rows["label"].unique().to_pylist()):
        raise DamagedFileError(f"{path}: column winner: expected 0 or 1 in every row. Repair the file.")
    return _with_answers(rows)


def _with_answers(rows: pa.Table) -> pa.Table:
    if "prediction" not in rows.column_names:
        rows = rows.append_column("prediction", pc.greater(rows["logit_1"], rows["logit_0"]).cast(pa.int64()))
    if "series_id" not in rows.column_names:
        rows = rows.append_column("series_id", pa.chunked_array([pa.nulls(rows.num_rows, pa.string())]))
    names = ["image1", "image2", "series_id", "label", "prediction", "logit_0", "logit_1"]
    return rows.select(names).append_column(CORRECT, pc.equal(rows["prediction"], rows["label"]))
