"""Checkpoints: everything a run needs to continue, the states of the random generators included.

Training takes random numbers from torch's generators and from Python's, not from NumPy's.
"""

import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.untrusted import check_zip
from ava_pipeline.errors import CheckpointError

FORMAT = "ava_pipeline checkpoint 1"
_REMEDY = "Give the checkpoint of a run of ava-pipeline, or start over with --restart (nothing is deleted)."


def seed_all(seed: int) -> None:
    """Seed torch on every device, and Python's `random`."""
    torch.manual_seed(seed)
    random.seed(seed)


def rng_states() -> dict[str, Any]:
    """The states of all generators, as plain types and tensors."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def restore_rng_states(states: dict[str, Any]) -> None:
    """Continue with the random numbers that followed `rng_states`; CUDA's only if the number of devices is the same."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A run between two optimizer steps; `model`, `optimizer` and `scaler` are state dicts."""

    fingerprint: Mapping[str, Any]  # setting -> value, for the settings that must not change when the run continues
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, int]  # `step`, the number of optimizer steps taken
    scaler: Mapping[str, Any]  # empty without a gradient scaler
    rng: Mapping[str, Any]  # states of the random generators
    epoch: int  # 0-based epoch in which to continue
    batch: int  # batches of that epoch already trained on
    losses: torch.Tensor  # [2] sum and number of that epoch's finite losses
    telemetry: Mapping[str, Any]  # the collector's state
    metrics: list[dict[str, float]]  # column -> value, for each finished epoch


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint atomically; if that fails, raise CheckpointError and leave the previous one unchanged."""
    content = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    try:
        with written_aside(path) as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the checkpoint could not be written ({error}); the previous one, if any, is unchanged. "
            "Free disk space or give another --output-dir, then continue with --resume."
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; raise CheckpointError if it is truncated or not one of ava-pipeline."""
    content = _read(path)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of format {FORMAT!r}, got another one. {_REMEDY}")
    missing = {field.name for field in fields(Checkpoint)} ^ content.keys()
    if missing:
        raise CheckpointError(f"{path}: missing or unknown entries: {', '.join(sorted(missing))}. {_REMEDY}")
    return Checkpoint(**content)


def check_fits(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError, which names each with both values, if settings of checkpoint and run differ."""
    changed = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if changed:
        named = "; ".join(f"{key} was {found.get(key)!r}, is {wanted.get(key)!r}" for key in changed)
        raise CheckpointError(
            f"{path} was written with other settings: {named}. Restore them to continue with --resume, "
            "or start over with --restart or another --output-dir."
        )


def _read(path: Path) -> Any:
    try:
        check_zip(path)  # torch does not notice flipped bytes
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain types, and was not unpickled, because that can run code. "
            f"{_REMEDY}"
        ) from error
    except Exception as error:  # torch's reader raises almost anything for a damaged file
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: cannot be read; it is truncated or not a checkpoint ({reason}). {_REMEDY}"
        ) from error
