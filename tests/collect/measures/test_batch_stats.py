"""Batch statistics against counts by NumPy, and labels that cannot be counted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ava_pipeline import MisuseError, TelemetryCollector, open_run
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import backward, tiny

CLASSES = {"winner": 2, "kind": 3}


def recorded(root: Path, batches: Sequence[Mapping[str, Tensor]], **options: object) -> list[dict[str, object]]:
    """The rows of batches with these labels."""
    model, optimizer = tiny()
    backward(model)
    settings = {"collect_every_n": 1, "track_batch_stats": True, "label_classes": CLASSES, **options}
    with TelemetryCollector(model, optimizer, root, settings) as telemetry:
        for labels in batches:
            telemetry.step(labels=labels)
    return open_run(root).arrow("batch_stats").to_pylist()


def test_shares_and_means_are_those_of_numpy(tmp_path: Path) -> None:
    """Classes of any integer type and booleans; votes and shares; the last batch may be smaller."""
    rng = np.random.default_rng(0)
    batches, expected = [], []
    for batch_idx, size in enumerate((8, 8, 3), start=1):
        winner, kind, votes = rng.integers(0, 2, size), rng.integers(0, 3, size), rng.integers(1, 50, (size, 10))
        batches.append({
            "winner": torch.tensor(winner, dtype=torch.bool),
            "kind": torch.tensor(kind, dtype=torch.uint8),
            "score": torch.tensor(votes),
        })  # fmt: skip
        means = votes @ np.arange(1, 11) / votes.sum(axis=1)
        expected.append({
            "batch_idx": batch_idx,
            "epoch": 0,
            "batch_size": size,
            **{f"winner_{index}_pct": 100 * np.sum(winner == index) / size for index in range(2)},
            **{f"kind_{index}_pct": 100 * np.sum(kind == index) / size for index in range(3)},
            "score_mean": pytest.approx(means.mean(), rel=1e-6),
            "score_std": pytest.approx(means.std(ddof=1), rel=1e-6),
        })  # fmt: skip
    assert recorded(tmp_path, batches) == expected
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_what_is_not_given_is_null(tmp_path: Path) -> None:
    """A label, all labels, and the deviation of one sample; a score that comes later gets its columns then."""
    rows = recorded(
        tmp_path,
        [{"winner": torch.tensor([1, 1])}, {}, {"score": torch.eye(10)[:1]}, {"winner": torch.tensor([0])}],
    )
    assert [row["batch_size"] for row in rows] == [2, None, 1, 1]
    assert [row["winner_1_pct"] for row in rows] == [100.0, None, None, 0.0]
    assert [row["score_mean"] for row in rows] == [None, None, 1.0, None]
    assert [row["score_std"] for row in rows] == [None] * 4
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_labels_outside_the_classes_are_in_no_share(tmp_path: Path) -> None:
    """As the -1 of a sample without a label."""
    (row,) = recorded(tmp_path, [{"winner": torch.tensor([0, -1, 1, -1])}])
    assert (row["winner_0_pct"], row["winner_1_pct"], row["batch_size"]) == (25.0, 25.0, 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"unknown": torch.tensor([0])}, "label_classes: {unknown: <number of classes>}"),
        ({"winner": torch.ones(2, 2)}, "leave 'winner' out of label_classes"),
        ({"winner": torch.ones(2, 1)}, "shape (2, 1): give its .squeeze(1)"),
        ({"winner": torch.ones(2, 2, 2)}, "got a tensor of shape (2, 2, 2)"),
        ({"winner": [0, 1]}, "got a list"),
        ([torch.tensor([0])], "labels is [tensor([0])]"),
    ],
)
def test_labels_that_cannot_be_counted_raise_at_the_first_step(tmp_path: Path, labels: object, message: str) -> None:
    """Not only at the first collected one."""
    model, optimizer = tiny()
    options = {"track_batch_stats": True, "label_classes": {"winner": 2}}
    with TelemetryCollector(model, optimizer, tmp_path, options) as telemetry:
        with pytest.raises(MisuseError, match=message.translate({ord(one): f"\\{one}" for one in "{}[]()"})):
            telemetry.step(labels=labels)  # type: ignore[arg-type]  # what a user may pass
        telemetry.step()


def test_labels_of_different_lengths_cost_their_own_row_only(tmp_path: Path) -> None:
    """An event says why; the norms of the batch are recorded."""
    good = {"winner": torch.tensor([0, 1]), "kind": torch.tensor([0, 1])}
    rows = recorded(tmp_path, [good, {**good, "kind": torch.tensor([0])}, good])
    assert [row["batch_idx"] for row in rows] == [1, 3]
    run = open_run(tmp_path)
    assert len(run.gradient_norms()) == 3
    assert run.events()["message"].str.contains("expected as many of each").any()
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_a_run_that_does_not_track_them_ignores_labels(tmp_path: Path) -> None:
    """Whatever they are: the switch of a loop that always passes them."""
    model, optimizer = tiny()
    backward(model)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        telemetry.step(labels={"anything": torch.ones(3)})
    assert "batch_stats" not in open_run(tmp_path).manifest.tables
