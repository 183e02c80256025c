"""What pydantic refused in a config, in sentences that a person can act on."""

import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

MAX_PROBLEMS = 20
MAX_SHOWN_CHARS = 60

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a block of keys",
    type(None): "nothing",
}
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
_SAID_OF = {
    "extra_forbidden": "unknown key",
    "invalid_key": "unknown key",
    "missing": "missing",
    "value_error": "does not fit together",
}


def sentences(error: ValidationError, model: type[BaseModel], *, source_of: Callable[[str], str]) -> str:
    """Describe every problem, one a line: where, what was given, what is allowed.

    Args:
        error: what `model` refused.
        model: the outermost model of the config.
        source_of: names the file or the override that a key path came from.
    """
    problems: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        where, allowed = _problem(detail, model)
        path = ".".join(where) or "(the whole file)"
        problems.setdefault(f"{source_of(path)}: {path}: {_given(detail)}", []).append(allowed)
    lines = [f"{given}; {_choice(allowed)}" for given, allowed in problems.items()]
    rest = [f"... and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
    return "\n".join([*lines[:MAX_PROBLEMS], *rest])


def _problem(detail: Any, model: type[BaseModel]) -> tuple[list[str], str]:
    """Where the problem is, and what is allowed there."""
    place, known = _walk(detail["loc"], model)
    if detail["type"] in {"extra_forbidden", "invalid_key"}:
        return place, suggestion(place[-1], known)
    if detail["type"] == "missing":
        return place, "give it a value"
    if detail["type"] == "value_error":
        return place, str(detail["ctx"]["error"])
    return place, _allowed(detail)


def _walk(loc: Sequence[str | int], model: type[BaseModel]) -> tuple[list[str], Iterable[str]]:
    """The keys on the way, without pydantic's own name for a branch of a union, and the keys known beside the last."""
    place: list[str] = []
    known: Iterable[str] = ()
    kinds: tuple[Any, ...] = (model,)
    for part in loc:
        if len(kinds) > 1:
            kinds = ()
            continue
        place.append(str(part))
        fields = kinds[0].model_fields if kinds and hasattr(kinds[0], "model_fields") else {}
        known, kinds = fields, _kinds_at(kinds, fields, str(part))
    return place, known


def _kinds_at(kinds: tuple[Any, ...], fields: Mapping[str, FieldInfo], key: str) -> tuple[Any, ...]:
    """What a key's value may be: several kinds of a union (None is not told apart in a place), one, or none known."""
    if kinds and get_origin(kinds[0]) is dict:
        return _choices(get_args(kinds[0])[1])
    return _choices(fields[key].annotation) if key in fields else ()


def _choices(annotation: Any) -> tuple[Any, ...]:
    choices = get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else (annotation,)
    return tuple(choice for choice in choices if choice is not type(None))


def _choice(allowed: Sequence[str]) -> str:
    """Every branch of a union refuses in its own words: say them as one choice."""
    return " or ".join(dict.fromkeys(allowed)).replace(" or allowed is ", " or ")


def _allowed(detail: Any) -> str:
    if detail["type"] in {"model_type", "model_attributes_type"}:
        return "allowed is a block of keys"
    message = str(detail["msg"]).replace("Input should be", "allowed is", 1).replace("Input is", "allowed is", 1)
    for pydantics, ours in _WORDS.items():
        message = message.replace(pydantics, ours)
    return message


def _given(detail: Any) -> str:
    if detail["type"] in _SAID_OF:
        return _SAID_OF[detail["type"]]
    value = detail["input"]
    shown = repr(value)
    kind = _KINDS.get(type(value), type(value).__name__)
    return f"given {shown if len(shown) <= MAX_SHOWN_CHARS else shown[:MAX_SHOWN_CHARS] + '...'} ({kind})"


def suggestion(given: str, known: Iterable[str]) -> str:
    """Name the known key that `given` most likely means, and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1)
    listed = f"nown here: {', '.join(names)}"
    return f"did you mean {close[0]!r}? K{listed}" if close else f"k{listed}"
