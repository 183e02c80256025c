"""Read metrics.csv, whose columns are those that the training loop logged."""

import pyarrow as pa

from ava_pipeline.contract.builtin_tables import METRICS, metrics_table
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.read.csv import first_columns, header_names, parse_csv, whole_lines


def read_metrics(layout: RunLayout) -> pa.Table:
    """Read metrics.csv: `epoch`, `batch_idx` if a row has one, and a float64 column for each metric.

    Raise FileNotFoundError if it does not exist, and DamagedFileError if it has other columns or cannot be read.
    """
    data = whole_lines(layout.metrics)
    return parse_csv(layout.metrics, data, _declaration(layout, data))


def is_foreign(layout: RunLayout, manifest: Manifest) -> bool:
    """Whether metrics.csv is another program's file: no attempt wrote it, and it has not the form of ours."""
    is_known = manifest.is_of_train or any(attempt.logs_metrics for attempt in manifest.attempts)
    return not is_known and not has_our_form(layout)


def has_our_form(layout: RunLayout) -> bool:
    """Whether metrics.csv begins with the columns of ours; a file without a whole line does."""
    try:
        names = first_columns(layout.metrics)
        metrics_table(names) if names != [""] else None
    except (MisuseError, OSError):
        return False
    return True


def _declaration(layout: RunLayout, data: bytes) -> RunTable:
    try:
        return metrics_table(header_names(data)) if data else RunTable.of(METRICS)
    except MisuseError as error:
        raise DamagedFileError(
            f"{layout.metrics}: {error} If another program wrote it, give it another name; else restore it."
        ) from error
