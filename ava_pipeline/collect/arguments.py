"""What the collector is given, checked: settings, facts of the run, values, and the process's rank."""

import json
import operator
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import Tensor, nn

from ava_pipeline.collect.measures.measure import Value
from ava_pipeline.config.messages import describe_errors
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.errors import ConfigError, MisuseError

_JSON = TypeAdapter(dict[str, JsonValue])


def telemetry_config(
    config: TelemetryConfig | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> TelemetryConfig:
    """Join a config and single fields, the fields winning.

    Raises:
        ConfigError: an unknown field or a value that is not allowed; every one is named.
    """
    if config is not None and not isinstance(config, TelemetryConfig | Mapping):
        raise ConfigError(f"config is {config!r}: give a TelemetryConfig, a mapping of its fields, or None.")
    given = config.model_dump() if isinstance(config, TelemetryConfig) else dict(config or {})
    try:
        return TelemetryConfig.model_validate({**given, **overrides})
    except ValidationError as error:
        found = describe_errors(error, TelemetryConfig, source_of=lambda _: "TelemetryConfig")
        raise ConfigError(found) from error


def check_given(model: object, output_dir: object, groups: object, grad_scaler: object) -> None:
    """Refuse what is of another kind than the collector needs, where it is given and not where it is used.

    Raises:
        MisuseError: with what was given.
    """
    if not isinstance(model, nn.Module):
        raise MisuseError(f"model is a {type(model).__name__}: give the torch.nn.Module that is being trained.")
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


def rank() -> int:
    """This process's rank; only rank 0 writes.

    Raises:
        MisuseError: the environment variable RANK is no number.
    """
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


def num_ranks() -> int:
    """How many processes train together."""
    is_several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_several else 1


def as_json(run_info: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The user's facts as JSON holds them; a text's bytes that are no UTF-8 become question marks.

    Raises:
        MisuseError: one of them is nothing that JSON holds.
    """
    try:
        facts = _JSON.validate_python(dict(run_info))
        text = json.dumps(facts, allow_nan=False, ensure_ascii=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MisuseError(
            f"run_info[{first['loc'][0]!r}] cannot be kept as JSON ({first['msg']}): "
            "give numbers, texts, lists and mappings."
        ) from error
    except ValueError as error:
        raise MisuseError(f"run_info cannot be kept as JSON ({error}): give finite numbers.") from error
    storable_facts: dict[str, JsonValue] = json.loads(text.encode("utf-8", "replace"))
    return storable_facts


def whole_number(name: str, value: object, *, least: int) -> int:
    """An int of whatever is one, NumPy's included; a tensor is not asked, since the device would have to be waited for.

    Raises:
        MisuseError: it is none, below `least`, or more than 64 bits hold.
    """
    try:
        number = None if isinstance(value, Tensor | bool) else operator.index(value)  # type: ignore[arg-type]  # asked here
    except TypeError:
        number = None
    if number is None or not least <= number < 2**63:
        raise MisuseError(
            f"{name} is {value!r} ({type(value).__name__}): give an int, {least} or more and below 2**63."
        )
    return number


def check_values(values: Mapping[str, Value]) -> None:
    """Refuse what is no mapping of names, and tensors that are not one real number.

    Anything else that is none costs the row of its step and is told, as what is wrong with a row always is.

    Raises:
        MisuseError: with what was given.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise MisuseError(f"values is {values!r}: give a mapping name -> number, such as {{'loss': loss}}.")
    for name, value in values.items():
        if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex()):
            raise MisuseError(
                f"values[{name!r}] is a tensor of shape {tuple(value.shape)} and {value.dtype}: give one real number, "
                "such as its .mean()."
            )
