"""A table as Parquet stores it: the Parquet file, and behind it the rows still in the journal."""

from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ava_pipeline.contract.declared_size import check_declared_size
from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.journal import Damage, Journal, read_journal
from ava_pipeline.errors import DamagedFileError

ROWS_PER_GROUP = 2**16


@dataclass(frozen=True, slots=True)
class Stored:
    """Every row that could be read of a table.

    Attributes:
        rows: in the order they were written.
        damage: bytes of the journal that could not be read.
    """

    rows: pa.Table
    damage: tuple[Damage, ...] = ()


def read_stored(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> Stored | None:
    """Read a table from its Parquet file and its journal, without changing either.

    The journal goes on behind the rows that the Parquet file held when it began; where it was turned into Parquet
    already and only its removal is missing, its rows are not read twice.

    Args:
        parquet: need not exist.
        journal: need not exist.
        schema: the table's, used where the journal's own is damaged.

    Returns:
        None where neither file exists.

    Raises:
        DamagedFileError: the Parquet file cannot be read.
    """
    # The journal first: one that becomes Parquet meanwhile is found there, and its rows are not read twice.
    found = _read_journal(journal, schema)
    parts = [read_parquet(parquet)] if parquet.exists() else []
    if found is not None and found.schema is not None:
        rows = pa.Table.from_batches([batch for _, batch in found.batches], found.schema)
        # Counted in rows that can be read: of a damaged journal no more than those went into the Parquet file.
        num_stored = parts[0].num_rows if parts else 0
        parts.append(rows.slice(max(0, num_stored - found.rows_before)))
    damage = found.damage if found else []
    if not parts:
        return None if not damage else Stored(pa.table({}), tuple(damage))
    return Stored(_joined(parts, parquet), tuple(damage))


def _joined(parts: list[pa.Table], parquet: Path) -> pa.Table:
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise DamagedFileError(f"{parquet} and the journal beside it hold other columns: {error}.") from error


def write_parquet(path: Path, rows: pa.Table) -> None:
    """Write a Parquet file that appears complete or not at all, read back before it appears.

    Raises:
        OSError: it cannot be written.
        DamagedFileError: what was read back is not what was written.
    """
    with written_aside(path) as file:
        pq.write_table(rows, file, row_group_size=ROWS_PER_GROUP, compression="zstd", write_page_checksum=True)
        file.flush()
        with pq.ParquetFile(file.name, page_checksum_verification=True) as written:
            if not same_bits(written.read(), rows):
                raise DamagedFileError(f"{file.name} reads back other than it was written: check the disk.")


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same values bit for bit; unlike `Table.equals`, nan is equal to nan."""
    return bool(one.schema.equals(other.schema)) and bool(_bits(one).equals(_bits(other)))


def _bits(rows: pa.Table) -> pa.Table:
    for index, field in enumerate(rows.schema):
        if pa.types.is_floating(field.type):
            bits = pa.int32() if field.type.bit_width == 32 else pa.int64()  # noqa: PLR2004  # float32
            chunks = [chunk.view(bits) for chunk in rows.column(index).chunks]
            rows = rows.set_column(index, pa.field(field.name, bits), pa.chunked_array(chunks, type=bits))
    return rows


def store_journal(parquet: Path, journal: Path, schema: pa.Schema | None = None) -> Stored | None:
    """Turn the journal into Parquet: after this the Parquet file holds every row and there is no journal.

    A damaged journal is kept in the folder `damaged/` beside it.

    Raises:
        OSError: the Parquet file cannot be written; the journal still stands.
        DamagedFileError: the older Parquet file cannot be read; the journal still stands.
    """
    stored = read_stored(parquet, journal, schema)
    if not journal.exists():
        return stored
    if stored is not None and stored.rows.num_columns:
        write_parquet(parquet, stored.rows)
    if stored is not None and stored.damage:
        keep_damaged(journal)
    else:
        journal.unlink()
    return stored


def keep_damaged(path: Path) -> None:
    """Move a file that cannot be read, or not all of it, to the folder `damaged/` beside it."""
    place = free_place(path)
    place.parent.mkdir(exist_ok=True)
    path.rename(place)


def keep_damaged_end(path: Path, end: bytes) -> None:
    """Copy the end of a file, which is to be cut off, to the folder `damaged/` beside it."""
    with written_aside(free_place(path.with_name(f"{path.name}.end"))) as file:
        file.write(end)


def free_place(path: Path) -> Path:
    """Where in the folder `damaged/` beside it a file can be kept, behind those of the same name."""
    folder = path.parent / "damaged"
    names = chain([path.name], (f"{path.name}.{number}" for number in count(1)))
    return next(folder / name for name in names if not (folder / name).exists())


def read_parquet(path: Path) -> pa.Table:
    """Read a complete Parquet file, its checksums verified.

    Raises:
        DamagedFileError: the file cannot be read, or would take more memory than such a file can need.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            check_declared_size(file.metadata, path.stat().st_size)
            rows = file.read()
        rows.validate(full=True)
    except (pa.ArrowException, OSError, DamagedFileError) as error:
        reason = str(error).partition("\n")[0].removesuffix(".")
        raise DamagedFileError(
            f"{path} cannot be read as Parquet: {reason}. Restore it from a backup, or move it away."
        ) from error
    return rows


def _read_journal(path: Path, schema: pa.Schema | None) -> Journal | None:
    try:
        return read_journal(path, schema=schema)
    except FileNotFoundError:
        return None  # there is none, or it became Parquet this moment
