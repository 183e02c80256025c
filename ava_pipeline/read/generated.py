"""Whether a run was trained on generated data, which its figures then say."""

from pathlib import Path

from ava_pipeline import yaml_text
from ava_pipeline.errors import DamagedFileError


def is_generated(path: Path) -> bool:
    """Whether the run that `path` is or lies in was trained on generated data; no config, no claim.

    Raises:
        DamagedFileError: the config is none.
    """
    candidates = (folder / "config.yaml" for folder in (path, *path.resolve().parents[:2]))
    config = next((file for file in candidates if file.is_file()), None)
    if config is None:
        return False
    try:
        values = yaml_text.parse(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{config} cannot be read: {error}. Restore it, or move it away.") from error
    data = values.get("data") if isinstance(values, dict) else None
    return isinstance(data, dict) and data.get("sample") is not None
