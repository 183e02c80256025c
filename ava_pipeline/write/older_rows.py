"""What an earlier attempt left in the run directory: made whole, and set aside where it is superseded."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.journal import same_columns
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.stored import store_journal, write_parquet
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.write.csv import cut_torn_line


class Mended(NamedTuple):
    """Something of an older file that could not be kept."""

    file: str
    message: str


def make_whole(layout: RunLayout) -> list[Mended]:
    """Cut torn CSV lines and turn journals into Parquet, so that every file holds whole rows.

    Returns:
        What had to be cut, for events.

    Raises:
        OSError: the disk refused.
        DamagedFileError: a Parquet file cannot be read.
    """
    mended = []
    for path in sorted(layout.telemetry.glob("*.csv")):
        torn = cut_torn_line(path)
        if torn:
            mended.append(Mended(path.name, f"a last line of {len(torn)} bytes that was never finished was cut"))
    for journal in sorted(layout.telemetry.glob("*.journal")):
        stored = store_journal(layout.parquet(journal.stem), journal)
        mended += [
            Mended(journal.name, f"{damage.num_bytes} bytes at {damage.offset} are lost: {damage.reason}")
            for damage in (stored.damage if stored else ())
        ]
    return mended


def count_rows(layout: RunLayout) -> dict[str, int]:
    """Rows in each file of tables that were made whole, by file name."""
    counts = {path.name: pq.read_metadata(path).num_rows for path in layout.telemetry.glob("*.parquet")}
    for path in layout.telemetry.glob("*.csv"):
        with path.open("rb") as file:
            counts[path.name] = max(0, sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b"")) - 1)
    return counts


def set_aside(layout: RunLayout, *, after_batch: int, attempt: int) -> dict[str, int]:
    """Move rows behind `after_batch` to the attempt's folder under `superseded/`.

    Returns:
        How many rows were moved, by file name.

    Raises:
        OSError: the disk refused; every row is still in one of the two places.
    """
    target = layout.superseded(attempt)
    moved: dict[str, int] = {}
    if after_batch == 0:
        moved = count_rows(layout)
        for name in moved:
            _move(layout.telemetry / name, target / name)
        return {name: count for name, count in moved.items() if count}
    for path in sorted(layout.telemetry.glob("*.csv")):
        moved[path.name] = _split_csv(path, target / path.name, after_batch)
    for path in sorted(layout.telemetry.glob("*.parquet")):
        moved[path.name] = _split_parquet(path, target / path.name, after_batch)
    return {name: count for name, count in moved.items() if count}


def set_aside_other_columns(layout: RunLayout, tables: list[RunTable], *, attempt: int) -> dict[str, int]:
    """Move files whose columns are not this run's to the attempt's folder under `superseded/`.

    Returns:
        How many rows were moved, by file name.
    """
    counts = count_rows(layout)
    moved = {}
    for run_table in tables:
        name = run_table.table.name
        for path in (layout.csv(name), layout.parquet(name)):
            if path.exists() and not _has_columns(path, run_table):
                _move(path, layout.superseded(attempt) / path.name)
                moved[path.name] = counts[path.name]
    return moved


def _has_columns(path: Path, run_table: RunTable) -> bool:
    if path.suffix == ".parquet":
        return same_columns(pq.read_schema(path), run_table.arrow_schema)
    with path.open("rb") as file:
        return file.readline().decode(errors="replace").rstrip("\n") == ",".join(run_table.column_names)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _split_csv(path: Path, target: Path, after_batch: int) -> int:
    """Lines behind `after_batch` to `target`, the others stay; first the copy, then the cut."""
    header, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
    kept = [line for line in lines if int(line.split(b",", 1)[0]) <= after_batch]
    if len(kept) == len(lines):
        return 0
    past = [line for line in lines if int(line.split(b",", 1)[0]) > after_batch]
    for place, rows in ((target, past), (path, kept)):
        with written_aside(place) as file:
            file.writelines([header, *rows])
    return len(past)


def _split_parquet(path: Path, target: Path, after_batch: int) -> int:
    rows: pa.Table = pq.read_table(path)
    is_kept = pc.less_equal(rows.column("batch_idx"), pa.scalar(after_batch))
    past = rows.filter(pc.invert(is_kept))
    if past.num_rows:
        write_parquet(target, past)
        write_parquet(path, rows.filter(is_kept))
    return past.num_rows
