"""Rules of files: there, readable, with the declared columns and types, and nothing left over."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.layout import PARTIAL_SUFFIX, RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.validate.checked_run import CheckedRun
from ava_pipeline.validate.violations import Breach, Cell, Rule

UNREADABLE = Rule("files.unreadable", "Every file can be read.")
COLUMNS = Rule("files.columns", "A file's columns are those that the manifest declares, in order.")
DTYPE = Rule("files.dtype", "A Parquet column has its declared type.")
TORN = Rule("files.torn-line", "The CSV file of an ended run ends with a whole line.")
LINE_END = Rule("files.line-end", "A CSV line ends in LF alone.")
LINE = Rule("files.line", "A CSV line has a field for each column.")
VALUE = Rule("values.dtype", "A CSV field reads as its column's type.")
JOURNAL = Rule("files.journal", "Every byte of a journal belongs to a whole frame.")

FILE_RULES = (UNREADABLE, COLUMNS, DTYPE, TORN, LINE_END, JOURNAL, LINE, VALUE)

Take = Callable[[Breach], None]


class UnusableFileError(Exception):
    """A file that cannot be used; why not was told already."""


def relative(layout: RunLayout, path: Path) -> str:
    """A path below the run directory, as violations name it."""
    return path.relative_to(layout.root).as_posix()


def without_path(error: object, path: Path) -> str:
    """What is wrong with a file, without its path, which stands in front of a violation already."""
    return str(error).removeprefix(str(path)).removeprefix(":").lstrip().rstrip(".") + "."


def check_columns(found: pa.Schema, declared: pa.Schema, file: str, take: Take) -> bool:
    """Compare columns and types; whether rows of the one can become rows of the other."""
    if found.names != declared.names:
        columns, expected = ",".join(found.names), ",".join(declared.names)
        take(COLUMNS.found(file, f"the columns are {columns}; declared are {expected}."))
        return False
    for field in declared:
        given = found.field(field.name).type
        if not given.equals(field.type):
            take(DTYPE.found(file, Cell(f"is {given}; declared is {field.type}.", field.name, str(given))))
    return True


def nullable(schema: pa.Schema) -> pa.Schema:
    """The schema of rows that may break a rule: any value may be missing."""
    return pa.schema([field.with_nullable(nullable=True) for field in schema])


def fitted(rows: pa.Table, schema: pa.Schema, file: str, take: Take) -> pa.Table | None:
    """Give rows the declared columns and types; None where they cannot have them."""
    if not check_columns(rows.schema, schema, file, take):
        return None
    try:
        return rows.cast(nullable(schema))
    except pa.ArrowException as error:
        take(UNREADABLE.found(file, f"the values have not the declared types: {str(error).rstrip('.')}."))
        return None


MISSING = Rule("files.missing", "Every format of a table that the manifest counts rows in has its file.")
LEFTOVER = Rule("files.leftover", "Nothing half-written or unfinished is left over.", "warning")
NAME = Rule("files.name", "Every file in telemetry/ and predictions/ is one of the run's.", "warning")

DIRECTORY_RULES = (MISSING, LEFTOVER, NAME)


def check_directory(run: CheckedRun) -> Iterator[Breach]:
    """Names and presence of files."""
    if run.manifest is not None:
        yield from _missing(run.layout, run.manifest)
        yield from _unknown_tables(run.layout, run.manifest)
    if not run.is_open:
        yield from _leftovers(run.layout)
    yield from _unknown_predictions(run.layout)


def _missing(layout: RunLayout, manifest: Manifest) -> Iterator[Breach]:
    for name, entry in manifest.tables.items():
        places = {"csv": [layout.csv(name)], "parquet": [layout.parquet(name), layout.journal(name)]}
        for kind in entry.formats:
            file = places[kind][0]
            if _num_counted(manifest, file.name) > 0 and not any(path.exists() for path in places[kind]):
                yield MISSING.found(relative(layout, file), f"the manifest counts rows of {name} in it.")


def _num_counted(manifest: Manifest, file: str) -> int:
    def total(counts: Mapping[str, int]) -> int:
        return counts.get(file, 0)

    return sum(total(attempt.rows) - total(attempt.set_aside) for attempt in manifest.attempts)


def _leftovers(layout: RunLayout) -> Iterator[Breach]:
    for path in sorted(layout.root.rglob(f"*{PARTIAL_SUFFIX}")):
        yield LEFTOVER.found(relative(layout, path), "a file that was never finished; it can be deleted.")
    for path in sorted(layout.telemetry.glob("*.journal")):
        message = "rows that are not in Parquet, though the run ended; `ava-pipeline recover` brings them there."
        yield LEFTOVER.found(relative(layout, path), message)


def _unknown_tables(layout: RunLayout, manifest: Manifest) -> Iterator[Breach]:
    known = {*manifest.tables, "events"}
    for kind in ("csv", "parquet", "journal"):
        for path in sorted(layout.telemetry.glob(f"*.{kind}")):
            if path.stem not in known:
                yield NAME.found(relative(layout, path), f"{path.stem} is no table of the manifest.")


def _unknown_predictions(layout: RunLayout) -> Iterator[Breach]:
    known = {file.path for file in prediction_files(layout)}
    for path in sorted(layout.predictions.glob("*")):
        if path not in known and path.suffix != PARTIAL_SUFFIX:
            yield NAME.found(relative(layout, path), "predictions are named <name>_epoch_000.parquet.")
