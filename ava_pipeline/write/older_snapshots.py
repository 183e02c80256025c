"""The weight snapshots that earlier attempts left: what is half-written or damaged, and what a resume sets aside."""

from collections.abc import Sequence
from pathlib import Path

from ava_pipeline.contract.files import free_place
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt
from ava_pipeline.contract.snapshots import read_header, snapshot_files
from ava_pipeline.errors import DamagedFileError, in_words
from ava_pipeline.write.older_rows import supersede_file, with_place

UNREADABLE_SNAPSHOT = "snapshots.unreadable"  # the rule of `validate` that a damaged snapshot breaks


def remove_unfinished(layout: RunLayout) -> int:
    """Remove what was never finished, with its folder; return the number of files. Raise OSError if that fails."""
    folder = layout.unfinished_snapshots
    if not folder.is_dir():
        return 0
    paths = [path for path in folder.iterdir() if not path.is_dir()]
    for path in paths:
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    return len(paths)


def unfinished_snapshots(layout: RunLayout) -> list[Path]:
    """What a killed process left half-written."""
    folder = layout.unfinished_snapshots
    return [path for path in folder.iterdir() if not path.is_dir()] if folder.is_dir() else []


def inspect_snapshots(layout: RunLayout) -> list[Finding]:
    """The snapshots that cannot be read, as `repair_snapshots` moves them."""
    return [finding for _, _, finding in _damaged(layout)]


def repair_snapshots(layout: RunLayout) -> list[Finding]:
    """Remove half-written snapshots and move those that cannot be read to `damaged/`; return the latter.

    Raise OSError if the disk refuses.
    """
    remove_unfinished(layout)
    damaged = _damaged(layout)
    for path, place, _ in damaged:
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
    return [finding for _, _, finding in damaged]


def _damaged(layout: RunLayout) -> list[tuple[Path, Path, Finding]]:
    """Each damaged snapshot, its place in `damaged/`, and what is wrong with it."""
    found = []
    for file in snapshot_files(layout):
        path = file.path
        try:
            if file.is_safetensors:
                read_header(path)
        except (OSError, DamagedFileError) as error:  # a block that a disk cannot read must not cost rows
            message = in_words(error).removeprefix(str(path)).strip()
            name = path.relative_to(layout.root).as_posix()
            finding = Finding(id=UNREADABLE_SNAPSHOT, severity="error", message=message, file=name)
            place = free_place(layout.telemetry / path.name)
            found.append((path, place, with_place(finding, place)))
    return found


def set_aside_snapshots(layout: RunLayout, *, after_batch: int, attempt: int) -> bool:
    """Move snapshots of later batches to the attempt's folder under `superseded/`; return whether there were any."""
    folder = layout.superseded(attempt) / layout.weight_snapshots.name
    later = [file for file in snapshot_files(layout) if file.batch_idx > after_batch]
    for file in later:
        supersede_file(file.path, folder)
    return bool(later)


def num_snapshots(layout: RunLayout) -> int:
    """How many snapshots the folder has that telemetry wrote."""
    return sum(file.is_safetensors for file in snapshot_files(layout))


def num_expected(attempts: Sequence[Attempt]) -> int:
    """How many snapshots the attempts left in the folder, as they counted."""
    counts = [attempt.weight_snapshots for attempt in attempts]
    return sum(one.written - one.removed - one.set_aside for one in counts)


def count_of_last(attempts: Sequence[Attempt], num_found: int) -> None:
    """Add to the last attempt, which was killed before it could count them, the snapshots that it wrote."""
    counters = attempts[-1].weight_snapshots
    num_more = max(0, num_found - num_expected(attempts))
    attempts[-1].weight_snapshots = counters.model_copy(update={"written": counters.written + num_more})
