"""Read small files of a run that another program wrote: JSON, YAML and logs, none of which leads out of the run."""

import json
from pathlib import Path
from typing import Any

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.untrusted import check_name, read_small_file
from ava_pipeline.errors import DamagedFileError

MAX_JSON_BYTES = 16 * 2**20
MAX_LOG_BYTES = 64 * 2**20


def read_json(layout: RunLayout, path: Path) -> Any:
    """The content of a JSON file; None if there is no such file. Raise DamagedFileError if it cannot be read."""
    if not path.is_file():
        return None
    check_name(layout, path)
    try:
        return json.loads(read_small_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} cannot be read as JSON: {error}. Restore it, or move it away.") from error


def read_text(layout: RunLayout, path: Path) -> str:
    """The text of a log; empty if there is no such file. Bytes that are not text are replaced.

    Raise DamagedFileError if the file cannot be read.
    """
    if not path.is_file():
        return ""
    check_name(layout, path)
    try:
        return read_small_file(path, MAX_LOG_BYTES).decode(errors="replace")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error}. Restore it, or move it away.") from error
