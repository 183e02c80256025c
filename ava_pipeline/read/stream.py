"""The rows of a table a part at a time: a long table is never in memory as a whole."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ava_pipeline.contract.parquet import ROWS_PER_GROUP, parquet_rows, parquet_schema
from ava_pipeline.contract.stored import stored_rows
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.run import Run, check_types, has_complete_parquet, read_table


def stream_rows(run: Run, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a table of the manifest, of every row that can be read, in the order of writing.

    Also while the table is being written and after a crash. Some 16,000 rows of its Parquet file are in memory at a
    time, or a part of its journal; a table that is CSV only is read as a whole.

    Raises:
        NotARunError: the run has no manifest.
        DamagedFileError: a file cannot be read, or lacks a column; also while being read.
    """
    if run.old is not None:  # hand-written collectors leave CSV
        yield from run.ordered(name, columns=columns).to_batches()
        return
    manifest, layout = run.manifest, run.layout
    declaration, path = manifest.tables[name].declaration, layout.parquet(name)
    if has_complete_parquet(layout, manifest, name):
        schema = parquet_schema(path)
        check_types(schema, declaration, path)
        lacking = [column for column in columns if column not in schema.names]
        if lacking:
            raise DamagedFileError(f"{path} has no column {', '.join(lacking)}. Restore the file from a backup.")
        yield from parquet_rows(path, ROWS_PER_GROUP, columns).read()
        return
    stream = None
    if not layout.csv(name).exists():  # it may hold more rows: `read_table` knows
        stream = stored_rows(path, layout.journal(name), declaration.arrow_schema)
    batches = read_table(layout, declaration).to_batches() if stream is None else stream.read()
    for batch in batches:
        yield batch.select(list(columns))
