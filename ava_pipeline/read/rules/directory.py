"""The run directory: what the manifest names lies there, and nothing is left over."""

from collections.abc import Iterator, Mapping

from ava_pipeline.contract.layout import PARTIAL_SUFFIX, RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.read.inspected import Inspected
from ava_pipeline.read.prediction_files import prediction_files
from ava_pipeline.read.rules.files import relative
from ava_pipeline.read.violations import Breach, Rule

MISSING = Rule("files.missing", "Every format of a table that the manifest counts rows in has its file.")
LEFTOVER = Rule("files.leftover", "Nothing half-written or unfinished is left over.", "warning")
NAME = Rule("files.name", "Every file in telemetry/ and predictions/ is one of the run's.", "warning")

RULES = (MISSING, LEFTOVER, NAME)


def check(run: Inspected) -> Iterator[Breach]:
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
