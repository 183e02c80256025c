"""Recover a run that was killed or damaged: repair its files, and report what was saved and what was lost."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ava_pipeline.contract.files import free_place
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.journal import JournalReader
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, read_manifest, write_manifest
from ava_pipeline.contract.parquet import num_parquet_rows, parquet_rows
from ava_pipeline.contract.stored import find_misfit
from ava_pipeline.contract.tables import BATCH
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import DamagedFileError, MisuseError, NotARunError, WriteError
from ava_pipeline.write.attempts import rows_of_last
from ava_pipeline.write.event_log import EventLog, damage_event, snapshot_event
from ava_pipeline.write.lock import RunLock, check_unlocked
from ava_pipeline.write.older_rows import (
    count_rows,
    declared_schemas,
    inspect_csv,
    inspect_parquet,
    repair_files,
    table_names,
    table_paths,
    with_place,
)
from ava_pipeline.write.older_snapshots import (
    UNREADABLE_SNAPSHOT,
    count_of_last,
    inspect_snapshots,
    num_snapshots,
    repair_snapshots,
    unfinished_snapshots,
)
from ava_pipeline.write.resumed_tables import add_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredFile:
    """One file of a table.

    Attributes:
        file: its name in `telemetry/`.
        num_bytes: its size before the recovery.
        num_rows: rows that were read; of a journal, those that its Parquet file did not hold yet.
        lost: a finding for each part that could not be read.
        kept_in: place of the damaged original in `telemetry/`; None if nothing was lost.
    """

    file: str
    num_bytes: int
    num_rows: int
    lost: tuple[Finding, ...] = ()
    kept_in: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Every attribute, for programs."""
        return {
            "file": self.file,
            "num_bytes": self.num_bytes,
            "num_rows": self.num_rows,
            "lost": [finding.to_json() for finding in self.lost],
            "kept_in": self.kept_in,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The outcome of `recover_run`.

    Attributes:
        run: the run directory.
        is_dry: nothing was changed; this is what a recovery would do.
        tables: the files of each table.
        notes: remarks about the manifest.
    """

    run: Path
    is_dry: bool
    tables: dict[str, list[RecoveredFile]]
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every byte of every table belongs to a row that was saved."""
        return not self.lost

    @property
    def lost(self) -> list[Finding]:
        """A finding for everything that was lost."""
        return [finding for files in self.tables.values() for file in files for finding in file.lost]

    def to_json(self) -> dict[str, Any]:
        """Every attribute, for programs."""
        return {
            "run": str(self.run),
            "dry_run": self.is_dry,
            "complete": self.is_complete,
            "tables": {name: [file.to_json() for file in files] for name, files in self.tables.items()},
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """For a person: a line per file, its losses below it, the notes and a summary."""
        lines = [line for files in self.tables.values() for file in files for line in self._lines(file)]
        num_lost = len(self.lost)
        parts = "1 part of a file is" if num_lost == 1 else f"{num_lost} parts of files are"
        outcome = "nothing is lost" if self.is_complete else f"{parts} lost"
        summary = f"{self.run}: {outcome}{'; nothing was changed.' if self.is_dry else '.'}"
        return "\n".join([*lines, *self.notes, summary])

    def _lines(self, file: RecoveredFile) -> Iterator[str]:
        moved = ""
        if file.file.endswith(".journal"):
            moved = f", {'to be moved to' if self.is_dry else 'now in'} {Path(file.file).stem}.parquet"
        yield f"{file.file}: {file.num_rows} rows in {file.num_bytes} bytes{moved}"
        for finding in file.lost:
            yield from (f"  {line}" for line in finding.lines())


def recover_run(path: str | PathLike[str], *, dry_run: bool = False) -> Recovery:
    """Turn journals into Parquet, remove torn and damaged lines, and keep damaged originals in `telemetry/damaged/`.

    If it is interrupted, calling it again continues: rows are removed from one place only after they are in another.

    Args:
        path: the run directory.
        dry_run: only report what would be done; nothing on the disk is changed.

    Raises:
        NotARunError: the directory holds no table.
        MisuseError: a process writes the run.
        DamagedFileError: a link leads out of the run directory.
        WriteError: the disk refused; every row is still in its old or its new place.

    Example:
        >>> print(recover_run("outputs/ava/demo", dry_run=True).to_text())  # doctest: +SKIP
    """
    root = Path(path)
    layout = RunLayout(root)
    check_inside(layout)
    own = table_names(layout)
    names = sorted({path.stem for suffix in ("csv", "parquet", "journal") for path in table_paths(layout, own, suffix)})
    if not names:
        raise NotARunError(
            f"{root} holds no table as telemetry/*.csv, .parquet or .journal: give the directory of a run."
        )
    with _locked(layout, is_dry=dry_run):
        tables = {name: list(_inspect_table(layout, name)) for name in names}
        damaged = inspect_snapshots(layout)
        if damaged:
            tables[layout.weight_snapshots.name] = [_lost_snapshot(layout, finding) for finding in damaged]
        manifest, notes = _read_manifest(layout)
        notes += tuple(f"{path.name} was never finished, and is removed." for path in unfinished_snapshots(layout))
        recovery = Recovery(run=root, is_dry=dry_run, tables=tables, notes=notes)
        if not dry_run:
            repair_files(layout, names)
            repair_snapshots(layout)
            for entry in manifest.tables.values() if manifest else ():
                add_columns(layout, entry.declaration)  # a kill while columns were added leaves files without them
            _record(layout, names, manifest, recovery.lost)
    return recovery


def _lost_snapshot(layout: RunLayout, finding: Finding) -> RecoveredFile:
    """A weight snapshot that cannot be read; the others are as they were."""
    path = layout.root / (finding.file or "")
    kept_in = f"{layout.damaged.name}/{free_place(layout.telemetry / path.name).name}"
    file = path.relative_to(layout.telemetry).as_posix()
    return RecoveredFile(file=file, num_bytes=path.stat().st_size, num_rows=0, lost=(finding,), kept_in=kept_in)


@contextmanager
def _locked(layout: RunLayout, *, is_dry: bool) -> Iterator[None]:
    """Exclude writers; a dry run only checks that the run is not being written now."""
    try:
        if is_dry:
            check_unlocked(layout.lock)
            yield
            return
        lock = RunLock(layout.lock)
        try:
            yield
        finally:
            lock.release()
    except (WriteError, BlockingIOError) as error:
        raise MisuseError(
            f"{error} Recover the run after its process has ended; open_run() reads it already."
        ) from error
    except OSError as error:
        raise WriteError(f"{layout.root} could not be recovered: {error}. Fix the cause and try again.") from error


def _inspect_table(layout: RunLayout, name: str) -> Iterator[RecoveredFile]:
    for path in (layout.csv(name), layout.parquet(name), layout.journal(name)):
        if not path.exists():
            continue
        if path.suffix == ".csv":
            num_rows, lost = inspect_csv(path)
        elif path.suffix == ".parquet":
            num_rows, lost = inspect_parquet(path)
        else:
            num_rows, lost = _inspect_journal(layout, path)
        yield RecoveredFile(
            file=path.name,
            num_bytes=path.stat().st_size,
            num_rows=num_rows,
            lost=tuple(lost),
            kept_in=_kept_in(path, lost),
        )


def _kept_in(path: Path, lost: Collection[Finding]) -> str | None:
    if not lost:
        return None
    is_end = {finding.id for finding in lost} == {"files.torn-line"}
    return f"damaged/{free_place(path.with_name(f'{path.name}.end') if is_end else path).name}"


def _inspect_journal(layout: RunLayout, path: Path) -> tuple[int, list[Finding]]:
    """Count the rows that only the journal holds, and find what cannot be read."""
    reader = JournalReader(path, declared_schemas(layout).get(path.stem))
    num_read = end = 0
    for num_before, batch in reader.batches():
        num_read, end = num_read + batch.num_rows, num_before + batch.num_rows
    parquet, num_older = layout.parquet(path.stem), 0
    place = free_place(path)
    if parquet.exists() and not inspect_parquet(parquet)[1]:
        num_older = num_parquet_rows(parquet)
        misfit = find_misfit(parquet, path, reader.schema)
        if misfit is not None:
            return 0, [with_place(misfit, place)]
    lost = list(reader.damage)
    num_lost = end - reader.rows_before - num_read if num_read else 0  # each frame counts the rows before it
    if num_lost:
        message = f"{num_lost} rows between those that were read are lost."
        lost.append(Finding(id="files.journal", severity="error", message=message, file=f"telemetry/{path.name}"))
    num_stored = min(num_read, max(0, num_older - reader.rows_before))
    return num_read - num_stored, [with_place(finding, place) for finding in lost]


def _read_manifest(layout: RunLayout) -> tuple[Manifest | None, tuple[str, ...]]:
    try:
        return read_manifest(layout.manifest), ()
    except FileNotFoundError:
        return None, (f"{layout.manifest.name} is missing.",)
    except DamagedFileError as error:
        return None, (str(error),)


def _record(layout: RunLayout, names: Collection[str], manifest: Manifest | None, lost: Collection[Finding]) -> None:
    """Write an event for each loss, over all batches of the last attempt, and how the run ended into the manifest."""
    if lost:
        first = manifest.attempt.resumed_from + 1 if manifest and manifest.attempts else 1
        last = max(_last_batch(layout, names), first)
        log = EventLog(layout.root)
        log.open(layout.csv("events"))
        for finding in lost:
            is_snapshot = finding.id == UNREADABLE_SNAPSHOT  # which explains no missing rows
            log.add(snapshot_event(last, 0, str(finding)) if is_snapshot else damage_event(finding, first, last))
        log.close()
    if manifest is not None and manifest.status == "running" and manifest.attempts:
        manifest.status = manifest.attempt.status = "killed"
        manifest.attempt.rows = rows_of_last(manifest.attempts, count_rows(layout, names))
        count_of_last(manifest.attempts, num_snapshots(layout))
        write_manifest(layout.manifest, manifest)


def _last_batch(layout: RunLayout, names: Collection[str]) -> int:
    """The last batch in any Parquet file; 0 without rows."""
    last = 0
    for path in table_paths(layout, names, "parquet"):
        for batch in parquet_rows(path).read():
            if batch.num_rows:
                last = max(last, batch.column(BATCH)[-1].as_py())
    return last
