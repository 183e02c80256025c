"""Whether a run was trained on generated data, which its figures then say."""

from pathlib import Path

from ava_pipeline import yaml_text
from ava_pipeline.contract.inside import check_name
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import DamagedFileError


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
        values = yaml_text.read(config)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{config} cannot be read: {error}. Restore it, or move it away.") from error
    data = values.get("data") if isinstance(values, dict) else None
    return isinstance(data, dict) and data.get("sample") is not None
