"""Runs of hand-written collectors, as tests make them: CSV with CRLF, batches that start again, zeros for nothing."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

OLD_RUNS = Path(__file__).parents[2].parent / "shared" / "old_runs"
needs_old_runs = pytest.mark.skipif(not OLD_RUNS.is_dir(), reason="the old runs are not at ../shared/old_runs")
NAMES = ("ava_dist", "siamese_a")


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Append rows as Python's csv module does, with CRLF; the header comes first in a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(header)
        writer.writerows(rows)
    return path


def norms_of(epoch: int, batches: Iterable[int], *, backbone: float = 0.0) -> list[tuple[object, ...]]:
    """Rows of gradient_norms whose head is 5 = hypot(3, 4) and whose backbone is `backbone`."""
    return [(batch, epoch, 13.0 + batch, backbone, 5.0, 3.0, 4.0) for batch in batches]


NORMS = ("batch_idx", "epoch", "overall", "backbone_layer4", "mlp_head", "mlp_layer_0", "mlp_layer_3")


def old_run(root: Path, *, epochs: int = 3, batches: Sequence[int] = (2, 4, 6), log: str = "") -> Path:
    """Write a run with gradient norms in which `backbone_layer4` is 0 in every row, and perhaps a training.log."""
    for epoch in range(epochs):
        write_rows(root / "telemetry" / "gradient_norms.csv", NORMS, norms_of(epoch, batches))
    if log:
        (root / "training.log").write_text(log, encoding="utf-8")
    return root


def log_text(*, epochs: int, batches: int, end: str = "") -> str:
    """A log that names the batches of each epoch."""
    lines = []
    for epoch in range(1, epochs + 1):
        lines += [f"2026-01-01 - INFO - Epoch {epoch}/{epochs}", f"2026-01-01 - INFO -   Batch 5/{batches}: loss=0.5"]
    return "\n".join([*lines, end, ""])


def write_json(path: Path, values: Mapping[str, object]) -> Path:
    """Write a JSON file."""
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
