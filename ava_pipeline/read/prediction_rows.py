"""A file of predictions, read for validation."""

import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.parquet_file import read_parquet
from ava_pipeline.contract.predictions import PREDICTIONS, predictions_schema
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.prediction_files import PredictionFile
from ava_pipeline.read.rules.files import UNREADABLE, Take, fitted, relative, told
from ava_pipeline.read.window import Window

_INTEGER_IDS = RunTable.of(PREDICTIONS)
_TEXT_IDS = RunTable.of(
    PREDICTIONS.model_copy(
        update={"columns": (PREDICTIONS.columns[0].model_copy(update={"dtype": "string"}), *PREDICTIONS.columns[1:])}
    )
)


def read_predictions(layout: RunLayout, file: PredictionFile, take: Take) -> Window | None:
    """Read a file of predictions; what makes it unusable is told to `take`."""
    name = relative(layout, file.path)
    try:
        rows = read_parquet(file.path)
    except DamagedFileError as error:
        take(UNREADABLE.found(name, told(error, file.path)))
        return None
    declaration = _TEXT_IDS if _has_text_ids(rows) else _INTEGER_IDS
    usable = fitted(rows, predictions_schema(integer_ids=declaration is _INTEGER_IDS), name, take)
    return None if usable is None else Window(name, declaration, usable)


def _has_text_ids(rows: pa.Table) -> bool:
    return "image_id" in rows.column_names and pa.types.is_string(rows.schema.field("image_id").type)
