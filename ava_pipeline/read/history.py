"""training_history.json and results.json, in which other training loops keep the metrics of a run.

The history has a list of numbers by epoch for each metric: `{"train_loss": [2.2, 0.3], "val_loss": [0.3, 0.2]}`. The
results are single numbers: `{"test_acc": 0.55, "final_epoch": 2}`.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ava_pipeline.contract.builtin_tables import METRICS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable, check_column_name
from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.read.run_files import read_json

HISTORY, RESULTS = "training_history.json", "results.json"
# What the metrics of a history are called here, where they are computed in the same way.
OUR_NAMES: Mapping[str, str] = {"val_spearman": "srcc", "val_acc": "accuracy"}
_EPOCH = "epoch"


def read_history(layout: RunLayout) -> pa.Table | None:
    """The metrics by epoch, as a metrics.csv has them: `epoch` from 0, and a float64 column for each list of numbers.

    None if there is no history. Lists of other values, and names that cannot name a column, are left out. Raise
    DamagedFileError if the file cannot be read.
    """
    values = read_json(layout, layout.root / HISTORY)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise DamagedFileError(f"{layout.root / HISTORY}: expected a list of numbers for each metric. Move it away.")
    columns = {name: _numbers(column) for name, column in values.items() if name != _EPOCH and _is_metric(name, column)}
    num_epochs = max(map(len, columns.values()), default=0)
    padded = [column + [None] * (num_epochs - len(column)) for column in columns.values()]
    schema = RunTable.of(METRICS, list(columns)).arrow_schema
    arrays: list[pa.Array[Any]] = [pa.array(range(num_epochs), pa.int64())]
    arrays += [pa.array(column, pa.float64()) for column in padded]
    return pa.Table.from_arrays(arrays, schema=schema)


def num_epochs_of(layout: RunLayout) -> int | None:
    """How many epochs the history has; None if there is none. Raise DamagedFileError if it cannot be read."""
    rows = read_history(layout)
    return None if rows is None else rows.num_rows


def read_results(layout: RunLayout) -> dict[str, Any]:
    """The numbers and texts of results.json; empty if there is none. Raise DamagedFileError if it cannot be read."""
    values = read_json(layout, layout.root / RESULTS)
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}


def _is_metric(name: str, values: object) -> bool:
    if not isinstance(values, list) or not all(value is None or _is_number(value) for value in values):
        return False
    try:
        check_column_name(name)
    except MisuseError:
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(values: list[Any]) -> list[float | None]:
    return [None if value is None else float(value) for value in values]
