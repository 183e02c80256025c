"""The arguments of the collector, and the process that it is in: what cannot be right raises."""

import json
import operator
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import Tensor, nn

from ava_pipeline.config.messages import describe_errors
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.errors import ConfigError, MisuseError, require_extra

_JSON = TypeAdapter(dict[str, JsonValue])


def check_arguments(model: object, output_dir: object, groups: object, grad_scaler: object) -> None:
    """Raise MisuseError if an argument of the constructor has a wrong type, rather than fail in a later step."""
    modules = model if isinstance(model, list | tuple) else [model]
    others = sorted({type(module).__name__ for module in modules if not isinstance(module, nn.Module)})
    if others or not modules:
        contents = f", not of {', '.join(others) or 'nothing'}" if modules is model else ""
        raise MisuseError(
            f"model is a {type(model).__name__}: give the torch.nn.Module that is being trained, or a list of modules "
            f"that are trained together{contents}."
        )
    path = os.fspath(output_dir) if isinstance(output_dir, str | os.PathLike) else None
    if not path or not isinstance(path, str):
        raise MisuseError(f"output_dir is {output_dir!r}: give the run's directory, such as 'outputs/ava/my_run'.")
    if groups is not None and not isinstance(groups, Mapping):
        raise MisuseError(
            f"groups is a {type(groups).__name__}: give a mapping column -> module, parameters or name globs, "
            "such as {'stem': 'conv1.*'}."
        )
    if grad_scaler is not None and not callable(getattr(grad_scaler, "is_enabled", None)):
        raise MisuseError(
            f"grad_scaler is a {type(grad_scaler).__name__}: "
            "give the torch.amp.GradScaler that scales the loss, or None."
        )


def telemetry_config(
    config: TelemetryConfig | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> TelemetryConfig:
    """Merge single fields into a config; raise ConfigError with all fields that are unknown or invalid.

    It is also raised if a switch is on whose library is not installed.
    """
    if config is not None and not isinstance(config, TelemetryConfig | Mapping):
        raise ConfigError(f"config is {config!r}: give a TelemetryConfig, a mapping of its fields, or None.")
    given = config.model_dump() if isinstance(config, TelemetryConfig) else dict(config or {})
    try:
        settings = TelemetryConfig.model_validate({**given, **overrides})
    except ValidationError as error:
        problems = describe_errors(error, TelemetryConfig, source_of=lambda _: "TelemetryConfig")
        raise ConfigError(problems) from error
    if settings.enabled and settings.track_weight_snapshots:
        require_extra("track_weight_snapshots", "snapshots", "safetensors")
    return settings


def as_json(run_info: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The user's facts as JSON values, or a MisuseError; bytes of a string that are not UTF-8 become question marks."""
    try:
        facts = _JSON.validate_python(dict(run_info))
        text = json.dumps(facts, allow_nan=False, ensure_ascii=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MisuseError(
            f"run_info[{first['loc'][0]!r}] cannot be stored as JSON ({first['msg']}): "
            "give numbers, strings, lists and mappings."
        ) from error
    except ValueError as error:
        raise MisuseError(f"run_info cannot be stored as JSON ({error}): give finite numbers.") from error
    storable_facts: dict[str, JsonValue] = json.loads(text.encode("utf-8", "replace"))
    return storable_facts


def whole_number(name: str, value: object, *, least: int = 0, remedy: str = "") -> int:
    """Return an integer, NumPy's too, as an int, or raise MisuseError; reading a tensor would wait for the device."""
    try:
        number = None if isinstance(value, Tensor | bool) else operator.index(value)  # type: ignore[arg-type]  # tried here
    except TypeError:
        number = None
    if number is None or not least <= number < 2**63:
        raise MisuseError(
            f"{name} is {value!r} ({type(value).__name__}): give an int, {least} or more and below 2**63.{remedy}"
        )
    return number


def read_state(state: Mapping[str, float]) -> tuple[int, int, int | None]:
    """The batch, the epoch and the global step of a checkpoint; raise MisuseError if it is not a collector's state."""
    if not isinstance(state, Mapping) or not {"batch_idx", "epoch"} <= set(state):
        raise MisuseError(f"{state!r} is not a collector's state: give what state_dict() returned.")
    batch_idx, epoch = (whole_number(f"state[{name!r}]", state[name]) for name in ("batch_idx", "epoch"))
    global_step = state.get("global_step")
    return batch_idx, epoch, None if global_step is None else int(global_step)


def process_rank() -> int:
    """This process's rank; only rank 0 writes. Raise MisuseError if the variable RANK is not a number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    given = os.environ.get("RANK", "")
    try:
        return int(given or "0")
    except ValueError as error:
        message = (
            f"the environment variable RANK is {given!r}: set it to this process's number, 0 if alone, or unset it."
        )
        raise MisuseError(message) from error
