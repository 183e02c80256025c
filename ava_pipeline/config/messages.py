"""The errors of pydantic in a config, as sentences that say what to write instead."""

import difflib
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ava_pipeline.config.older_names import older_name_sentence

_MAX_PROBLEMS = 20
_MAX_VALUE_CHARS = 60

# The values that pydantic expects, by its type of error.
_EXPECTED = {
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "too_short": "a list that is not empty",
    "string_too_short": "text that is not empty",
}
# Words of pydantic's messages, and the words of a person who writes YAML.
_WORDS = {
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a block of keys",
    "not a valid path for <class 'pathlib.Path'>": "a path",
}


def describe_errors(error: ValidationError, model: type[BaseModel], *, source_of: Callable[[str], str]) -> str:
    """Describe every problem on one line; `source_of` names the file or the override that set a key.

    config.yaml: optim.base_lr: expected a number above 0, got -1
    config.yaml: train.epoch: unknown key; did you mean 'epochs'? Known keys: accumulate, amp, batch_size, ...
    """
    lines: list[str] = []
    expected: dict[str, list[Any]] = {}  # the errors of each place whose value has the wrong type or size
    for detail in error.errors(include_url=False):
        keys, known = _keys(detail["loc"], model)
        key = ".".join(keys) or "(the whole file)"
        place = f"{source_of(key)}: {key}"
        sentence = _sentence(detail, keys, known, model)
        if sentence is not None:
            lines.append(f"{place}: {sentence}")
            continue
        if place not in expected:
            lines.append(place)
        expected.setdefault(place, []).append(detail)
    lines = [f"{line}: {_expected(expected[line])}" if line in expected else line for line in lines]
    rest = [f"... and {len(lines) - _MAX_PROBLEMS} more"] if len(lines) > _MAX_PROBLEMS else []
    return "\n".join([*lines[:_MAX_PROBLEMS], *rest])


def _keys(loc: Sequence[str | int], model: type[BaseModel]) -> tuple[list[str], Iterable[str]]:
    """The keys that lead to a value, without pydantic's names of union branches, and the known keys at that level."""
    keys: list[str] = []
    known: Iterable[str] = ()
    choices: tuple[Any, ...] = (model,)
    for part in loc:
        if len(choices) > 1:  # `part` names a branch of the union
            choices = ()
            continue
        keys.append(str(part))
        fields = choices[0].model_fields if choices and hasattr(choices[0], "model_fields") else {}
        known, choices = fields, _types_at(choices, fields, str(part))
    return keys, known


def _types_at(choices: tuple[Any, ...], fields: Mapping[str, FieldInfo], key: str) -> tuple[Any, ...]:
    """The types that a key's value may have; empty if they are not known."""
    if choices and get_origin(choices[0]) is dict:
        return _branches(get_args(choices[0])[1])
    return _branches(fields[key].annotation) if key in fields else ()


def _branches(annotation: Any) -> tuple[Any, ...]:
    """The types of a union except None, whose errors pydantic reports without a branch."""
    branches = get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else (annotation,)
    return tuple(branch for branch in branches if branch is not type(None))


def _sentence(detail: Any, keys: Sequence[str], known: Iterable[str], model: type[BaseModel]) -> str | None:
    """The whole sentence about an error; None if it says which values are expected."""
    match detail["type"]:
        case "extra_forbidden" | "invalid_key":
            older = older_name_sentence(keys[-1], detail["input"], model)
            return older or f"unknown key; {_suggestion(keys[-1], sorted(known))}"
        case "missing":
            return "missing; give it a value"
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            return None


def _suggestion(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    listed = f"nown keys: {', '.join(known)}"
    return f"did you mean {close[0]!r}? K{listed}" if close else f"k{listed}"


def _expected(details: Sequence[Any]) -> str:
    """Join the errors of a union's branches to one sentence."""
    expected = " or ".join(dict.fromkeys(map(_expected_value, details)))
    value = details[0]["input"]
    shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= _MAX_VALUE_CHARS else f"{shown[:_MAX_VALUE_CHARS]}..."
    # The quotes alone are a poor hint that '3' is not a number.
    is_wrong_type = any(detail["type"].endswith(("_type", "_path")) for detail in details)
    return f"expected {expected}, got {shown}{' (text)' if is_wrong_type and isinstance(value, str) else ''}"


def _expected_value(detail: Any) -> str:
    if detail["type"] in _EXPECTED:
        return _EXPECTED[detail["type"]].format(**detail.get("ctx", {}))
    text = str(detail["msg"]).removeprefix("Input should be ").removeprefix("Input is ")
    for pydantics, ours in _WORDS.items():
        text = text.replace(pydantics, ours)
    return text
