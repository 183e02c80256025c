"""Rules of a run that another program wrote: one warning that it has no manifest, and what can be checked without one.

Values and the sums of norms follow the declarations that `read/old_run.py` makes of the tables, the rows must be in
order within an epoch, and predictions are distributions. CRLF, other columns and missing rows are as they are.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import float_columns, null_mask
from ava_pipeline.contract.builtin_tables import GT_COLUMNS, PRED_COLUMNS, PREDICTIONS
from ava_pipeline.contract.layout import PredictionFile, RunLayout, prediction_files
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.contract.untrusted import check_name
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.eval_dump import pair_files, read_pairs
from ava_pipeline.read.old_run import OldRun
from ava_pipeline.read.old_tables import OldTable, read_raw
from ava_pipeline.validate.checked_run import CheckedFile, Window
from ava_pipeline.validate.listing import Breach, Cell, Listing, Rule, relative, without_path
from ava_pipeline.validate.rules_files import COLUMNS, UNREADABLE
from ava_pipeline.validate.rules_predictions import check_distribution, check_unique
from ava_pipeline.validate.rules_rows import EPOCH, KEY, ORDER
from ava_pipeline.validate.rules_values import check_columns, check_rows

NO_MANIFEST = Rule(
    "run.no-manifest",
    "A run has a manifest; a run of another program has none, and is checked as far as that is possible.",
    "warning",
)
_FLOATS = ("pred_mean", "gt_mean", *PRED_COLUMNS, *GT_COLUMNS)


def check_old_run(old: OldRun, listing: Listing) -> None:
    """Check every file of a run that another program wrote."""
    for path, error in old.problems.items():
        listing.add(UNREADABLE.broken(relative(old.layout, path), without_path(error, path)))
    place = old.folder.name if old.folder != old.layout.root else old.layout.root.name
    message = (
        "another program wrote these files, so that rows, counters and columns cannot be compared with a manifest. "
        "Values, the order of rows in each epoch and predictions are checked."
    )
    listing.add(NO_MANIFEST.broken(place, message))
    for table in old.tables.values():
        check_old_table(old, table, relative(old.layout, table.path), listing)
    for file in prediction_files(old.layout):
        check_old_predictions(old.layout, file, listing)
    for pairs in pair_files(old.layout):
        try:
            read_pairs(old.layout, pairs.path)
        except DamagedFileError as error:
            listing.add(UNREADABLE.broken(relative(old.layout, pairs.path), without_path(error, pairs.path)))


def check_old_table(old: OldRun, table: OldTable, file: str, listing: Listing) -> None:
    """Check the rows of a table: their values, the sums of norms, and their order within each epoch."""
    raw = read_raw(table.path)
    if table.path.suffix == ".csv":
        listing.line_numbers(file).append(table.path.read_bytes().partition(b"\n")[2], raw.num_rows)
    for breach in _order(file, table, raw):
        listing.add(breach)
    rows = old.read(table.name, in_order=True)
    window = CheckedFile(file, table.declaration).append(rows)
    for breach in check_rows(window, old.manifest):
        listing.add(_shifted(breach, table.begin))


def _shifted(breach: Breach, begin: int) -> Breach:
    """The breach with rows counted from the beginning of a file whose first rows are left out."""
    rows = [None if row is None else int(row) + begin for row in breach.rows]
    return Breach(breach.rule, breach.file, rows, breach.explain, breach.num)


def _order(file: str, table: OldTable, raw: pa.Table) -> Iterator[Breach]:
    """Rows whose batch does not rise within an epoch, epochs that fall, and repeated rows of a long table."""
    batches, epochs = (raw.column(name).combine_chunks().to_numpy() for name in ("batch_idx", "epoch"))
    is_long = table.declaration.table.is_long
    steps, is_same_epoch = np.diff(batches), np.diff(epochs) == 0
    is_broken = is_same_epoch & ((steps < 0) if is_long else (steps <= 0))
    expected = "not below" if is_long else "above"

    def explain_batch(index: int) -> Cell:
        row = int(np.flatnonzero(is_broken)[index]) + 1
        message = (
            f"expected a value {expected} that of the row before in epoch {epochs[row]}, which is {batches[row - 1]}"
        )
        return Cell(f"{message}, got {batches[row]}.", "batch_idx", str(batches[row]))

    def explain_epoch(index: int) -> Cell:
        row = int(np.flatnonzero(np.diff(epochs) < 0)[index]) + 1
        message = (
            f"expected an epoch not below {epochs[row - 1]}, got {epochs[row]}: a second training wrote into the same "
            "file. Only the rows of the last one are read; move the others away."
        )
        return Cell(message, "epoch", str(epochs[row]))

    if is_broken.any():
        yield ORDER.broken_rows(file, np.flatnonzero(is_broken) + 2, explain_batch)
    falls = np.flatnonzero(np.diff(epochs) < 0) + 2
    if len(falls):
        yield EPOCH.broken_rows(file, falls, explain_epoch)
    if is_long:
        yield from _repeated(file, table.declaration.table, raw, table.begin)


def _repeated(file: str, table: Table, raw: pa.Table, begin: int) -> Iterator[Breach]:
    keys = list(zip(*(raw.column(name).to_pylist() for name in ("epoch", "batch_idx", *table.row_key)), strict=True))
    seen: set[tuple[object, ...]] = set()
    broken: list[int] = []
    for row, key in enumerate(keys[begin:], begin + 1):
        if key in seen:
            broken.append(row)
        seen.add(key)

    def explain(index: int) -> Cell:
        text = ", ".join(map(str, keys[broken[index] - 1][2:]))
        return Cell(f"expected one row of {text} in its batch, got another one.", table.row_key[0], text)

    if broken:
        yield KEY.broken_rows(file, broken, explain)


def check_old_predictions(layout: RunLayout, file: PredictionFile, listing: Listing) -> None:
    """Check a file of predictions, whatever the order of its columns and the types of its numbers.

    Predicted shares that are all 0 or null are those of a model that predicts the mean alone.
    """
    name = relative(layout, file.path)
    try:
        check_name(layout, file.path)
        rows = read_parquet(file.path)
    except DamagedFileError as error:
        listing.add(UNREADABLE.broken(name, without_path(error, file.path)))
        return
    missing = [column for column in ("image_id", *_FLOATS) if column not in rows.column_names]
    if missing:
        listing.add(COLUMNS.broken(name, f"expected predictions, but it has no columns {', '.join(missing)}."))
        return
    declaration, typed = _as_ours(rows)
    window = CheckedFile(name, declaration).append(typed)
    for breach in _predictions(window):
        listing.add(breach)


def _as_ours(rows: pa.Table) -> tuple[RunTable, pa.Table]:
    """The rows in the order and with the types of ours; image ids as they are, predicted shares of a mean null."""
    is_text = not pa.types.is_integer(rows.schema.field("image_id").type)
    columns = [
        column.model_copy(update={"dtype": "string"} if column.name == "image_id" and is_text else {})
        for column in PREDICTIONS.columns
    ]
    columns = [
        column.model_copy(update={"nullable": True}) if column.name in PRED_COLUMNS else column for column in columns
    ]
    declaration = RunTable.of(PREDICTIONS.model_copy(update={"columns": tuple(columns)}))
    schema = pa.schema([field.with_nullable(True) for field in declaration.arrow_schema])  # noqa: FBT003  # Arrow's order
    typed = rows.select(schema.names).cast(schema, safe=False)
    return declaration, typed


def _predictions(window: Window) -> Iterable[Breach]:
    yield from check_columns(window)
    values = float_columns(window.rows, _FLOATS)
    for mean, names in (("pred_mean", PRED_COLUMNS), ("gt_mean", GT_COLUMNS)):
        shares = np.column_stack([values[name] for name in names])
        if names == PRED_COLUMNS and _predicts_means(window, shares, names):
            continue
        yield from check_distribution(window, mean, values[mean], names, shares)
    yield from check_unique(window)


def _predicts_means(
    window: Window, shares: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", names: Sequence[str]
) -> bool:
    is_null = np.column_stack([null_mask(window.rows.column(name)) for name in names])
    return bool((is_null | (shares == 0)).all())
