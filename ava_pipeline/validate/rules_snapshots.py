"""Rules of weight snapshots: named by their batch, readable, finished, and as many as the manifest counts."""

from collections.abc import Iterator

from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.snapshots import SnapshotFile, read_header, snapshot_file, snapshot_files
from ava_pipeline.errors import DamagedFileError, in_words
from ava_pipeline.validate.checked_run import CheckedRun
from ava_pipeline.validate.listing import Breach, Rule, relative, without_path
from ava_pipeline.validate.rules_files import LEFTOVER, NAME

UNREADABLE = Rule("snapshots.unreadable", "Every weight snapshot can be read.")
BATCH = Rule("snapshots.batch", "A weight snapshot has the batch and the epoch of its name.")
TIED = Rule("snapshots.tied", "Further names of a tensor in a weight snapshot are names of tensors that it holds.")
MISSING = Rule("snapshots.missing", "Every weight snapshot that the manifest counts exists.")


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """Snapshots that are missing, unfinished, unknown or damaged."""
    layout = run.layout
    files = snapshot_files(layout)
    if not run.is_open:
        for path in sorted(layout.unfinished_snapshots.glob("*")):
            message = "this snapshot was never finished. Run `ava-pipeline recover` to remove it."
            yield LEFTOVER.broken(relative(layout, path), message)
        if run.manifest is not None:
            yield from _missing(run, run.manifest, sum(file.is_safetensors for file in files))
    for path in sorted(layout.weight_snapshots.glob("*")):
        if path != layout.unfinished_snapshots and (snapshot_file(path) is None or not path.is_file()):
            message = "expected a name such as weights_epoch0_batch500.safetensors."
            yield NAME.broken(relative(layout, path), message)
    for file in files:
        if file.is_safetensors and file.path.is_file():
            yield from _check(file, relative(layout, file.path))


def _missing(run: CheckedRun, manifest: Manifest, num_found: int) -> Iterator[Breach]:
    counts = [attempt.weight_snapshots for attempt in manifest.attempts]
    num_counted = sum(one.written - one.removed - one.set_aside for one in counts)
    if num_found < num_counted:
        message = f"expected {num_counted} snapshots, as the manifest counts, got {num_found}."
        yield MISSING.broken(relative(run.layout, run.layout.weight_snapshots), message)


def _check(file: SnapshotFile, name: str) -> Iterator[Breach]:
    try:
        header = read_header(file.path)
    except (OSError, DamagedFileError) as error:
        yield UNREADABLE.broken(name, without_path(in_words(error), file.path))
        return
    for key, expected in (("batch_idx", file.batch_idx), ("epoch", file.epoch)):
        given = header.metadata.get(key)
        if given != str(expected):
            yield BATCH.broken(name, f"expected {key} {expected} in its metadata, got {given}.", value=given)
    try:
        header.tied()
    except DamagedFileError as error:
        yield TIED.broken(name, f"{error}.")
