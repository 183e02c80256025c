"""Which files of the telemetry folder are the run's tables. What else lies there is somebody's, and is left alone."""

from collections.abc import Collection, Sequence
from pathlib import Path

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.measured_tables import GRADIENT_NORMS, LEARNING_RATES, STEPS
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError

_BUILT_IN = frozenset(table.name for table in (GRADIENT_NORMS, LEARNING_RATES, STEPS))


def own_tables(layout: RunLayout, tables: Sequence[RunTable] = ()) -> frozenset[str]:
    """Names of the run's tables: those of any attempt so far, the events, and those of the attempt that begins.

    Where the manifest is lost, the tables that come with the package, and those of which a journal is left.

    Args:
        layout: of the run.
        tables: of the attempt that begins.
    """
    return frozenset({EVENTS.name, *(one.table.name for one in tables), *_older(layout)})


def files_of(layout: RunLayout, names: Collection[str], kind: str) -> list[Path]:
    """The tables' files of one kind (`csv`, `parquet` or `journal`) that are there, in the order of their names."""
    return [path for path in sorted(layout.telemetry.glob(f"*.{kind}")) if path.stem in names]


def _older(layout: RunLayout) -> Collection[str]:
    try:
        manifest = read_manifest(layout.manifest)
    except (FileNotFoundError, DamagedFileError):  # whoever needs the manifest itself says so
        return _BUILT_IN.union(path.stem for path in layout.telemetry.glob("*.journal"))
    return {*manifest.tables, *(name for one in manifest.attempts for name in one.columns)}
