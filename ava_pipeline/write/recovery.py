"""What recovering a run found: for each table what was there, what was saved, what was lost."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
