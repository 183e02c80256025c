"""What every writer promises, whatever its format."""

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.write.writers import CsvWriter, ParquetWriter, Writer
from tests.scripts import run_script
from tests.write.feeding import batch_of
from tests.write.memory_writer import MemoryWriter

pytestmark = pytest.mark.timeout(90)

BOTH_WIDTHS = RunTable.of(
    Table(
        name="numbers",
        description="Numbers.",
        columns=(
            Column(name="batch_idx", dtype="int64", description="Batch."),
            Column(name="narrow", dtype="float32", description="A float32.", nullable=True),
        ),
        run_columns=Column(name="<wide>", dtype="float64", description="A float64.", nullable=True),
    ),
    ("wide",),
)
SCHEMA = BOTH_WIDTHS.arrow_schema


def open_csv(folder: Path, schema: pa.Schema) -> Writer:
    """A CSV file in the folder."""
    return CsvWriter(folder / "numbers.csv", schema)


def open_parquet(folder: Path, schema: pa.Schema) -> Writer:
    """A Parquet file and its journal in the folder."""
    return ParquetWriter(folder / "numbers.parquet", schema)


def open_memory(folder: Path, schema: pa.Schema) -> Writer:
    """No file at all."""
    return MemoryWriter()


def rows_of(writer: Writer, folder: Path, schema: pa.Schema) -> list[dict[str, object]]:
    """What the writer has taken so far, as a reader finds it."""
    if isinstance(writer, MemoryWriter):
        return pa.Table.from_batches(writer.batches, schema).to_pylist()
    if isinstance(writer, CsvWriter):
        options = csv.ConvertOptions(column_types=schema, null_values=[""], strings_can_be_null=True)
        return csv.read_csv(folder / "numbers.csv", convert_options=options).to_pylist()
    stored = read_stored(folder / "numbers.parquet", folder / "numbers.journal")
    return [] if stored is None else stored.rows.to_pylist()


Open = Callable[[Path, pa.Schema], Writer]
every_writer = pytest.mark.parametrize("open_writer", [open_csv, open_parquet, open_memory])


def row(batch_idx: int, narrow: float | None = 0.5, wide: float | None = 0.25) -> dict[str, object]:
    """One row of numbers."""
    return {"batch_idx": batch_idx, "narrow": narrow, "wide": wide}


def bits(rows: Sequence[dict[str, object]]) -> list[list[object]]:
    """Rows with floats as their bits, so that nan equals nan and -0.0 is not 0.0; every nan is one."""
    return [[_bits(value) for value in one.values()] for one in rows]


def _bits(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "nan" if math.isnan(value) else struct.pack("<d", value)


@every_writer
def test_rows_come_back_in_order_while_writing_and_after_close(open_writer: Open, tmp_path: Path) -> None:
    """Each batch can be read as soon as it was taken, behind those before it."""
    writer = open_writer(tmp_path, SCHEMA)
    expected = []
    for start in (1, 4, 2**40):
        batch = [row(start), row(start + 1), row(start + 2)]
        writer.write(batch_of(SCHEMA, batch))
        expected += batch
        assert rows_of(writer, tmp_path, SCHEMA) == expected
    writer.sync()
    writer.close()
    assert rows_of(writer, tmp_path, SCHEMA) == expected


@every_writer
def test_numbers_nan_infinities_and_null_stay_apart(open_writer: Open, tmp_path: Path) -> None:
    """Measured, measured and not finite, and not measured are three things."""
    values = [1.5, math.nan, math.inf, -math.inf, None, -0.0]
    rows = [row(number, value, value) for number, value in enumerate(values, start=1)]
    writer = open_writer(tmp_path, SCHEMA)
    writer.write(batch_of(SCHEMA, rows))
    writer.close()
    assert bits(rows_of(writer, tmp_path, SCHEMA)) == bits(rows)


@every_writer
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.none() | st.floats(width=32, allow_subnormal=True), st.none() | st.floats(allow_subnormal=True)),
        max_size=8,
    )
)
def test_every_float_comes_back_to_the_bit(
    open_writer: Open, values: list[tuple[float | None, float | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """float32 and float64 survive each format unaltered, subnormal ones too."""
    folder = tmp_path_factory.mktemp("floats")
    rows = [row(number, *pair) for number, pair in enumerate(values, start=1)]
    writer = open_writer(folder, SCHEMA)
    writer.write(batch_of(SCHEMA, rows))
    writer.close()
    assert bits(rows_of(writer, folder, SCHEMA)) == bits(rows)


@every_writer
@pytest.mark.parametrize("num_columns", [1, 500])
def test_narrow_and_wide_tables(open_writer: Open, num_columns: int, tmp_path: Path) -> None:
    """A table may have a single column or hundreds."""
    names = ["batch_idx", *(f"c{number}" for number in range(1, num_columns))]
    schema = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in names])
    rows = [dict.fromkeys(schema.names, 2**40 + line) for line in range(3)]
    writer = open_writer(tmp_path, schema)
    writer.write(batch_of(schema, rows))
    writer.close()
    assert rows_of(writer, tmp_path, schema) == rows


@every_writer
def test_an_empty_batch_changes_nothing(open_writer: Open, tmp_path: Path) -> None:
    """No rows are no lines."""
    writer = open_writer(tmp_path, SCHEMA)
    writer.write(batch_of(SCHEMA, []))
    writer.write(batch_of(SCHEMA, [row(1)]))
    writer.write(batch_of(SCHEMA, []))
    writer.close()
    assert rows_of(writer, tmp_path, SCHEMA) == [row(1)]


@every_writer
def test_abandoning_leaves_what_was_written(open_writer: Open, tmp_path: Path) -> None:
    """Letting go of a file, twice even, loses nothing of it."""
    writer = open_writer(tmp_path, SCHEMA)
    writer.write(batch_of(SCHEMA, [row(1)]))
    writer.abandon()
    writer.abandon()
    assert rows_of(writer, tmp_path, SCHEMA) == [row(1)]


def test_parquet_continues_after_the_rows_of_an_existing_file(tmp_path: Path) -> None:
    """Closing turns the journal into one file with the older rows, and the journal goes."""
    for batch in (1, 2):
        writer = open_parquet(tmp_path, SCHEMA)
        writer.write(batch_of(SCHEMA, [row(batch)]))
        writer.close()
    assert read_parquet(tmp_path / "numbers.parquet").to_pylist() == [row(1), row(2)]
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.parquet"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.write.feeding import batch_of
from tests.write.memory_writer import MemoryWriter
from tests.write.test_writers import SCHEMA, open_csv, open_parquet, row, rows_of

folder = Path(sys.argv[2])
writer = {"csv": open_csv, "parquet": open_parquet}[sys.argv[1]](folder, SCHEMA)
taken, refused = [], 0
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
for start in range(1, 400, 5):
    rows = [row(batch, 1 / 3, 1 / 3) for batch in range(start, start + 5)]
    try:
        writer.write(batch_of(SCHEMA, rows))
        taken += [one["batch_idx"] for one in rows]
    except OSError:
        refused += 1
    assert [one["batch_idx"] for one in rows_of(writer, folder, SCHEMA)] == taken
assert refused and taken, (refused, taken)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.write(batch_of(SCHEMA, [row(1000)]))
writer.close()
assert [one["batch_idx"] for one in rows_of(writer, folder, SCHEMA)] == [*taken, 1000]
"""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_full_disk_leaves_whole_rows_and_writing_goes_on_when_there_is_room(kind: str, tmp_path: Path) -> None:
    """The system refuses to let the file grow: a batch is taken in full or not at all."""
    run_script(FULL_DISK, kind, tmp_path)


NO_ROOM_AT_ALL = """
import resource, sys
from pathlib import Path
from tests.write.test_writers import SCHEMA, open_csv, open_parquet

folder = Path(sys.argv[2])
opening = {"csv": open_csv, "parquet": open_parquet}[sys.argv[1]]
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
before = len(list(Path("/proc/self/fd").iterdir()))
for _ in range(50):
    try:
        opening(folder, SCHEMA)
        raise SystemExit("a header was taken by a full disk")
    except OSError:
        pass
assert len(list(Path("/proc/self/fd").iterdir())) == before
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
opening(folder, SCHEMA).close()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_that_cannot_be_begun_leaks_nothing_and_can_be_begun_later(kind: str, tmp_path: Path) -> None:
    """Opening is tried again for as long as a run lasts: no descriptor and no stump may be left each time."""
    run_script(NO_ROOM_AT_ALL, kind, tmp_path)
