"""What must hold for the files, whatever happened to the disk."""

from collections.abc import Sequence
from pathlib import Path

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.stored import read_stored
from tests.write.feeding import csv_rows

LOSSES = {"gap", "failed_write"}


def broken_files(roots: Sequence[Path], last: int) -> list[str]:
    """Check a run whose rows may be in several directories, because it was moved.

    Args:
        roots: the directories.
        last: every batch up to this one must be in the files or covered by an event.

    Returns:
        One sentence per problem.
    """
    roots = [root for root in roots if RunLayout(root).csv("norms").exists()]
    return _broken(roots, last, "norms.csv") + _broken(roots, last, "norms.parquet")


def _broken(roots: Sequence[Path], last: int, file: str) -> list[str]:
    found: set[int] = set()
    broken = []
    for root in roots:
        batches = _csv_batches(root) if file.endswith(".csv") else _parquet_batches(root)
        if batches != sorted(set(batches)):
            broken.append(f"{root / file} holds batches twice or out of order")
        found.update(batches)
    lacking = set(range(1, last + 1)) - found - {batch for root in roots for batch in _explained(root, file)}
    if lacking:
        broken.append(f"{file} of {roots[-1]} lacks {len(lacking)} batches from {min(lacking)} that no event names")
    return broken


def _csv_batches(root: Path) -> list[int]:
    """The batches of whole lines; the last line may be incomplete."""
    whole, _, _ = RunLayout(root).csv("norms").read_text().rpartition("\n")
    return [int(line.split(",")[0]) for line in whole.splitlines()[1:]]


def _parquet_batches(root: Path) -> list[int]:
    stored = read_stored(RunLayout(root).parquet("norms"), RunLayout(root).journal("norms"))
    return [] if stored is None else [int(str(one)) for one in stored.rows.column("batch_idx").to_pylist()]


def _explained(root: Path, file: str) -> set[int]:
    """Batches that events report as missing from the file."""
    path = RunLayout(root).csv("events")
    rows = csv_rows(path) if path.exists() else []
    spans = [
        range(int(str(row["batch_idx"])), int(str(row["batch_idx_end"])) + 1)
        for row in rows
        if row["event"] in LOSSES and row["column"] in {None, file}
    ]
    return {batch for span in spans for batch in span}
