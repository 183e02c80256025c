"""A checkpoint is loaded whole or refused, and loading it runs no code."""

import math
import os
import random
from pathlib import Path

import pytest
import torch

from ava_pipeline.errors import CheckpointError
from ava_pipeline.train.checkpoint import (
    Checkpoint,
    check_fits,
    load_checkpoint,
    restore_rng_states,
    rng_states,
    save_checkpoint,
    seed_all,
)


def checkpoint(batch: int = 3) -> Checkpoint:
    """A small checkpoint."""
    return Checkpoint(
        fingerprint={"seed": 0},
        model={"weight": torch.arange(10_000.0)},
        optimizer={"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
        scheduler={"step": 7},
        scaler={},
        rng=rng_states(),
        epoch=1,
        batch=batch,
        losses=torch.tensor([0.5, 3.0], dtype=torch.float64),
        telemetry={"batch_idx": 9, "epoch": 1},
        metrics=[{"epoch": 0, "srcc": math.nan}],
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """Counts, tensors with their dtype, nan, and random states that torch and Python accept."""
    path = tmp_path / "checkpoints" / "last.pt"
    seed_all(5)
    saved = checkpoint()
    expected = torch.rand(3), random.random()  # noqa: S311  # no secret.
    save_checkpoint(path, saved)
    found = load_checkpoint(path)
    assert (found.epoch, found.batch, dict(found.scheduler), dict(found.telemetry)) == (
        1,
        3,
        {"step": 7},
        {"batch_idx": 9, "epoch": 1},
    )
    assert torch.equal(found.losses, saved.losses)
    assert math.isnan(found.metrics[0]["srcc"])
    restore_rng_states(dict(found.rng))
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]  # noqa: S311  # no secret.


def test_the_last_checkpoint_survives_a_save_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk only the new checkpoint is lost, and no partial file is left."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(batch=3))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*--output-dir.*--resume"):
        save_checkpoint(path, checkpoint(batch=4))
    assert load_checkpoint(path).batch == 3
    assert list(tmp_path.iterdir()) == [path]


def damaged(path: Path, *, damage: str) -> None:
    """Damage a file as disks, crashes and users do."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    text = b"epoch,train_loss\n0,0.5\n"
    damages: dict[str, bytes] = {"torn": bytes(content[:middle]), "empty": b"", "flipped": bytes(content), "text": text}
    path.write_bytes(damages[damage])


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "text"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    """The message names the file and what to do."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint())
    damaged(path, damage=damage)
    with pytest.raises(CheckpointError, match=r"last\.pt: .*--restart"):
        load_checkpoint(path)


class _Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"format": "ava_pipeline checkpoint 1", "model": _Bomb()}, "was not unpickled"),
        ({"state_dict": {}}, "expected a checkpoint of format 'ava_pipeline checkpoint 1'"),
        ({"format": "ava_pipeline checkpoint 2"}, "expected a checkpoint of format 'ava_pipeline checkpoint 1'"),
        ([1, 2], "expected a checkpoint of format 'ava_pipeline checkpoint 1'"),
        ({"format": "ava_pipeline checkpoint 1", "models": {}}, "missing or unknown entries: batch, "),
    ],
    ids=["code", "foreign", "newer", "list", "incomplete"],
)
def test_foreign_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, sentence: str
) -> None:
    """No code in them runs."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "owned").exists()


def test_other_settings_are_named_with_both_values() -> None:
    """Equal settings pass."""
    check_fits(Path("last.pt"), {"seed": 0, "sizes": [1]}, {"seed": 0, "sizes": [1]})
    with pytest.raises(CheckpointError, match=r"train.batch_size was 32, is 64\. Restore them"):
        check_fits(Path("last.pt"), {"seed": 0, "train.batch_size": 32}, {"seed": 0, "train.batch_size": 64})
