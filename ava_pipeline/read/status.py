"""How a run stands: whether one that counts as running still is, and whether its data were generated."""

import os
import platform
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from ava_pipeline.config import load
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import STALE_AFTER, Attempt, Manifest, Status
from ava_pipeline.contract.untrusted import check_name
from ava_pipeline.errors import DamagedFileError

StatusNow: TypeAlias = Status | Literal["killed"]


def status_now(manifest: Manifest, now: datetime) -> StatusNow:
    """The run's status; `killed` where it counts as running and its process is gone.

    A process of this host is looked for by its number; of one elsewhere, or whose number another process has by now,
    the heartbeat tells, which may be two minutes old.

    Args:
        manifest: of the run.
        now: the time of day, in UTC.
    """
    if manifest.status != "running":
        return manifest.status
    is_gone = bool(manifest.attempts) and _is_gone(manifest.attempt)
    return "killed" if is_gone or now - manifest.heartbeat_utc > STALE_AFTER else "running"


def _is_gone(attempt: Attempt) -> bool:
    """Whether no process of this host has the attempt's number."""
    if not attempt.pid or attempt.host != platform.node():
        return False
    with suppress(PermissionError):  # somebody else's, so it is there
        try:
            os.kill(attempt.pid, 0)
        except ProcessLookupError:
            return True
    return False


def is_generated(path: Path) -> bool:
    """Whether the run that `path` is or lies in was trained on generated data; no config, no claim.

    Raises:
        DamagedFileError: the config is none, or a link out of its run.
    """
    candidates = (folder / "config.yaml" for folder in (path, *path.resolve().parents[:2]))
    config = next((file for file in candidates if file.is_file()), None)
    if config is None:
        return False
    check_name(RunLayout(config.parent), config)
    try:
        values = load.read(config)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{config} cannot be read: {error}. Restore it, or move it away.") from error
    data = values.get("data") if isinstance(values, dict) else None
    return isinstance(data, dict) and data.get("sample") is not None
