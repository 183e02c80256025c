"""What recovering a run found: for each table what was there, what was saved, what was lost."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.files import free_place
from ava_pipeline.contract.journal import Damage, JournalReader
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest, read_manifest, write_manifest
from ava_pipeline.contract.parquet import check_parquet, parquet_rows
from ava_pipeline.contract.stored import find_misfit
from ava_pipeline.contract.tables import BATCH
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import DamagedFileError, MisuseError, NotARunError, WriteError
from ava_pipeline.write.attempts import rows_of_last
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.lock import RunLock, check_unlocked
from ava_pipeline.write.older_rows import count_rows, csv_damage, declared_schemas, files_of, make_whole, own_tables
from ava_pipeline.write.writers import torn_line


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredFile:
    """One file of a table.

    Attributes:
        file: its name in `telemetry/`.
        num_bytes: that were there.
        num_rows: that were read back; of a journal, those that its Parquet file did not hold yet.
        lost: a sentence for each part that could not be read.
        kept_in: where in `telemetry/` the damaged original lies; None where nothing was lost.
    """

    file: str
    num_bytes: int
    num_rows: int
    lost: tuple[str, ...] = ()
    kept_in: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A run that was recovered, or would be.

    Attributes:
        run: the run directory.
        is_dry: nothing was changed.
        tables: the files of each table that were there.
        notes: what else is worth a line.
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
    def lost(self) -> list[tuple[str, str]]:
        """File and sentence of everything lost."""
        return [(one.file, sentence) for files in self.tables.values() for one in files for sentence in one.lost]

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        tables = {name: [asdict(one) for one in files] for name, files in self.tables.items()}
        return {
            "run": str(self.run),
            "dry_run": self.is_dry,
            "complete": self.is_complete,
            "tables": tables,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """A line a file, what it lost below it, and one that sums up."""
        lines = [line for files in self.tables.values() for one in files for line in self._lines(one)]
        return "\n".join([*lines, *self.notes, self._summary()])

    def _lines(self, one: RecoveredFile) -> list[str]:
        moved = ""
        if one.file.endswith(".journal"):
            moved = f", {'to go into' if self.is_dry else 'now in'} {Path(one.file).stem}.parquet"
        lines = [f"{one.file}: {one.num_rows} rows of {one.num_bytes} bytes{moved}"]
        lines += [f"  lost: {sentence}" for sentence in one.lost]
        if one.kept_in is not None:
            lines.append(f"  {'to be kept' if self.is_dry else 'kept'} as {one.kept_in}")
        return lines

    def _summary(self) -> str:
        outcome = "nothing is lost" if self.is_complete else f"{len(self.lost)} parts of files are lost"
        return f"{self.run}: {outcome}{'; nothing was changed.' if self.is_dry else '.'}"


def recover_run(path: str | PathLike[str], *, dry_run: bool = False) -> Recovery:
    """Turn journals into Parquet, cut torn lines, and keep what is damaged in `telemetry/damaged/`.

    Called again after it was cut short, it goes on: no step takes a row from where it is before it is elsewhere.

    Args:
        path: the run directory.
        dry_run: only say what there is to do; nothing on the disk is changed.

    Raises:
        NotARunError: no table lies there.
        MisuseError: a process writes the run.
        DamagedFileError: a name leads out of the run directory.
        WriteError: the disk refused; every row is still where it was, or where it belongs.
    """
    root = Path(path)
    layout = RunLayout(root)
    check_inside(layout)
    names = _tables(layout)
    if not names:
        raise NotARunError(
            f"{root} holds no table as telemetry/*.csv, .parquet or .journal: give the directory of a run."
        )
    with _refusing(layout), _unlocked(layout) if dry_run else _held(layout):
        tables = {name: list(_files(layout, name)) for name in names}
        manifest, notes = _manifest(layout)
        found = Recovery(run=root, is_dry=dry_run, tables=tables, notes=notes)
        if not dry_run:
            _mend(layout, names, manifest, found)
    return found


def _tables(layout: RunLayout) -> list[str]:
    own = own_tables(layout)
    return sorted({path.stem for kind in ("csv", "parquet", "journal") for path in files_of(layout, own, kind)})


@contextmanager
def _refusing(layout: RunLayout) -> Iterator[None]:
    """Say in one sentence who writes the run, or what the disk refused."""
    try:
        yield
    except (WriteError, BlockingIOError) as error:
        raise MisuseError(f"{error} A run is recovered when its process has ended; open_run() reads it now.") from error
    except OSError as error:
        raise WriteError(f"{layout.root} could not be recovered: {error}. Mend the cause and try again.") from error


@contextmanager
def _held(layout: RunLayout) -> Iterator[None]:
    """Keep writers away."""
    lock = RunLock(layout.lock)
    try:
        yield
    finally:
        lock.release()


def _unlocked(layout: RunLayout) -> AbstractContextManager[None]:
    """See that nobody writes now; one who begins meanwhile is not kept away."""
    check_unlocked(layout.lock)
    return nullcontext()


def _files(layout: RunLayout, name: str) -> Iterator[RecoveredFile]:
    look: list[tuple[Path, Callable[[Path], tuple[int, list[str]]]]] = [
        (layout.csv(name), _look_at_csv),
        (layout.parquet(name), _look_at_parquet),
        (layout.journal(name), partial(_look_at_journal, layout)),
    ]
    for path, rows_and_losses in look:
        if path.exists():
            num_rows, lost = rows_and_losses(path)
            is_end = path.suffix == ".csv" and csv_damage(path) is None
            damaged = path.with_name(f"{path.name}.end") if is_end else path
            kept_in = free_place(damaged).relative_to(layout.telemetry).as_posix() if lost else None
            size = path.stat().st_size
            yield RecoveredFile(file=path.name, num_bytes=size, num_rows=num_rows, lost=tuple(lost), kept_in=kept_in)


def _look_at_csv(path: Path) -> tuple[int, list[str]]:
    damage = csv_damage(path)
    if damage is not None and damage.num_lines is None:
        return 0, [damage.message]
    torn = torn_line(path)
    lost = [f"a last line of {len(torn)} bytes that was never finished"] if torn else []
    with path.open("rb") as file:
        num_rows = max(0, sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b"")) - 1)
    if damage is None:
        return num_rows, lost
    return num_rows - (damage.num_lines or 0), [*lost, damage.message]


def _look_at_parquet(path: Path) -> tuple[int, list[str]]:
    try:
        return check_parquet(path), []
    except DamagedFileError as error:
        return 0, [str(error)]


def _look_at_journal(layout: RunLayout, path: Path) -> tuple[int, list[str]]:
    reader = JournalReader(path, declared_schemas(layout).get(path.stem))
    num_read = end = 0
    for before, batch in reader.batches():
        num_read, end = num_read + batch.num_rows, before + batch.num_rows
    parquet = layout.parquet(path.stem)
    num_older, unreadable = _look_at_parquet(parquet) if parquet.exists() else (0, ["there is none"])
    misfit = None if unreadable else find_misfit(parquet, path, reader.schema)
    if misfit is not None:
        return 0, [_damage(misfit)]
    num_stored = min(num_read, max(0, num_older - reader.rows_before))
    lost = [_damage(one) for one in reader.damage]
    # Each frame counts the rows before it.
    num_lost = end - reader.rows_before - num_read if num_read else 0
    return num_read - num_stored, [*lost, *([f"{num_lost} rows between those that were read"] if num_lost else [])]


def _damage(one: Damage) -> str:
    return f"{one.num_bytes} bytes at {one.offset}: {one.reason}"


def _manifest(layout: RunLayout) -> tuple[Manifest | None, tuple[str, ...]]:
    try:
        return read_manifest(layout.manifest), ()
    except FileNotFoundError:
        return None, (f"{layout.manifest.name}: there is none",)
    except DamagedFileError as error:
        return None, (str(error),)


def _mend(layout: RunLayout, names: Collection[str], manifest: Manifest | None, found: Recovery) -> None:
    """Make files whole, and leave word of what was lost and how the run ended."""
    make_whole(layout, names)
    _tell(layout, names, manifest, found.lost)
    if manifest is not None and manifest.status == "running" and manifest.attempts:
        manifest.status = manifest.attempt.status = "killed"
        manifest.attempt.rows = rows_of_last(manifest.attempts, count_rows(layout, names))
        write_manifest(layout.manifest, manifest)


def _tell(
    layout: RunLayout, names: Collection[str], manifest: Manifest | None, lost: Iterable[tuple[str, str]]
) -> None:
    """An event for each part that was lost, from the attempt's first batch to the last that is left."""
    told = [f"{file}: {sentence}." for file, sentence in lost]
    if not told:
        return
    first = manifest.attempt.resumed_from + 1 if manifest and manifest.attempts else 1
    last = max(_last_batch(layout, names), first)
    log = EventLog(layout.root)
    log.open(layout.csv("events"))
    for message in told:
        log.add(_event(message, first, last))
    log.close()


def _event(message: str, first: int, last: int) -> Event:
    return Event(
        event="damaged_file", severity="warning", message=message, batch_idx=first, batch_idx_end=last, epoch=0
    )


def _last_batch(layout: RunLayout, names: Collection[str]) -> int:
    """The last batch that any whole file holds a row of; 0 where there is none."""
    found = [0]
    for path in files_of(layout, names, "parquet"):
        found += [batch.column(BATCH)[-1].as_py() for batch in parquet_rows(path).read() if batch.num_rows][-1:]
    return max(found)
