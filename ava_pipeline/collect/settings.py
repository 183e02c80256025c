"""The collector's settings: a TelemetryConfig, a mapping, single fields, or any of them together."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ava_pipeline import config_errors
from ava_pipeline.config import TelemetryConfig
from ava_pipeline.errors import ConfigError


def telemetry_config(
    config: TelemetryConfig | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> TelemetryConfig:
    """Join a config and single fields, the fields winning.

    Raises:
        ConfigError: an unknown field or a value that is not allowed; every one is named.
    """
    given = config.model_dump() if isinstance(config, TelemetryConfig) else dict(config or {})
    try:
        return TelemetryConfig.model_validate({**given, **overrides})
    except ValidationError as error:
        found = config_errors.sentences(error, TelemetryConfig, source_of=lambda _: "TelemetryConfig")
        raise ConfigError(found) from error
