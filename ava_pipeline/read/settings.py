"""config.yaml of a run, as it is: of `ava-pipeline train`, or of another program, whose keys are its own."""

from typing import Any

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.untrusted import check_name
from ava_pipeline.errors import DamagedFileError


def read_settings(layout: RunLayout) -> dict[str, Any]:
    """The settings as a run's config.yaml gives them, not validated; empty if the file holds no mapping.

    Raise DamagedFileError if the file cannot be read, or is a link that leads out of the run.
    """
    from ava_pipeline.config.load import read_yaml  # noqa: PLC0415  # loads pydantic's models

    check_name(layout, layout.config)
    try:
        values = read_yaml(layout.config)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{layout.config} cannot be read: {error}. Restore it, or move it away.") from error
    return values if isinstance(values, dict) else {}
