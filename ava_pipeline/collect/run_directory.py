"""The run directory that a collector is given."""

import os
from pathlib import Path

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import MisuseError


def run_directory(output_dir: str | os.PathLike[str]) -> Path:
    """The absolute path of a run directory, since the process may change its own, with `~` expanded.

    Raise MisuseError if the home directory is unknown, or if this is the folder in which a run keeps its telemetry.
    """
    try:
        root = Path(output_dir).expanduser().absolute()
    except RuntimeError as error:
        raise MisuseError(f"output_dir is {os.fspath(output_dir)!r}: {error} Give a path without '~'.") from error
    layout = RunLayout(root.parent)
    if root == layout.telemetry and (os.path.lexists(layout.manifest) or os.path.lexists(layout.lock)):
        raise MisuseError(
            f"output_dir is {root}, the folder in which the run {root.parent} keeps its telemetry: give {root.parent}."
        )
    return root
