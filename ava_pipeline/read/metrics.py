"""Read metrics.csv, whose columns are those that the training loop logged."""

import pyarrow as pa

from ava_pipeline.contract.builtin_tables import METRICS, metrics_table
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.read.csv import header_names, parse_csv, whole_lines


def read_metrics(layout: RunLayout) -> pa.Table:
    """Read metrics.csv: `epoch`, `batch_idx` if a row has one, and a float64 column for each metric.

    Raise FileNotFoundError if it does not exist, and DamagedFileError if it has other columns or cannot be read.
    """
    data = whole_lines(layout.metrics)
    return parse_csv(layout.metrics, data, _declaration(layout, data))


def metrics_schema(layout: RunLayout) -> pa.Schema:
    """The columns of metrics.csv. Raise as `read_metrics` does."""
    return _declaration(layout, whole_lines(layout.metrics)).arrow_schema


def _declaration(layout: RunLayout, data: bytes) -> RunTable:
    try:
        return metrics_table(header_names(data)) if data else RunTable.of(METRICS)
    except MisuseError as error:
        raise DamagedFileError(
            f"{layout.metrics}: {error} If another program wrote it, give it another name; else restore it."
        ) from error
