"""YAML text <-> plain values, without YAML's surprises.

PyYAML speaks YAML 1.1, where `off` is false, `1e-3` is a string and a key given twice silently wins. Here `true` and
`false` are the only booleans, `1e-3` is a number, and keys given twice, tags (`!!int x`, `!!python/...`) and aliases
(a few lines of which can unfold to gigabytes) are refused.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ava_pipeline.config import messages
from ava_pipeline.config.models import RunConfig
from ava_pipeline.errors import ConfigError

MAX_CHARS = 1_000_000
_MAX_BYTES = 4 * MAX_CHARS

_SCALARS = {
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "float": (
        re.compile(
            r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
            r"|\.(?:nan|NaN|NAN)"
        ),
        "-+.0123456789",
    ),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)"), "-+0123456789"),
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
}


class _Loader(yaml.SafeLoader):
    """Plain values only, with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own name and shape for it.

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
        if self.check_event(yaml.AliasEvent):
            raise _refusal(f"*{event.anchor} is an alias; write the values out in its place", event.start_mark)
        if event.tag is not None:
            raise _refusal(f"{event.tag!r} is a tag; write a plain value, in quotes for a text", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  # PyYAML's signature.
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise _refusal(f"the key {key.value!r} is given twice; keep one of them", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for a number or a boolean, and escapes rare line breaks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds these into spaces unless they are escaped, which only double quotes do.
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _name, (_pattern, _first) in _SCALARS.items():
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, list(_first))


def parse(text: str) -> Any:
    """Read one YAML document.

    Args:
        text: the document, at most `MAX_CHARS` characters.

    Returns:
        Plain dicts, lists, strings, numbers, booleans and None.

    Raises:
        ValueError: the text is no YAML, or uses what this module refuses; the message says where.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"{len(text):,} characters; a config has at most {MAX_CHARS:,}. Is it another kind of file?")
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_sentence(error)) from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("brackets nested too deeply; a config is at most a few levels deep") from error


def read(path: Path) -> Any:
    """Read a file that holds one YAML document.

    Raises:
        OSError: the file cannot be opened.
        ValueError: as of `parse`; also where the file is no UTF-8, or far larger than any config.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES:,} bytes; a config has at most {MAX_CHARS:,} characters")
    return parse(data.decode("utf-8-sig"))


def dump(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML that `parse`, and any reader of YAML 1.1, reads back alike."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _refusal(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _sentence(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{place}{error.problem or error.context}"


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's config.

    Args:
        path: a YAML file.
        overrides: settings in place of the file's, as `a.b=value`; the value is YAML.

    Raises:
        ConfigError: the file cannot be read, or a setting cannot be used; every problem is named with file (or
            override), key path, what was given and what is allowed.
    """
    values = _read_mapping(Path(path))
    sources = dict(_override(values, override) for override in overrides)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        found = messages.sentences(error, RunConfig, source_of=lambda key: _source(key, sources, str(path)))
        raise ConfigError(found) from error


def dump_config(config: RunConfig) -> str:
    """Write a config as YAML that `load_config` reads back as an equal one."""
    return dump(config.model_dump(mode="json"))


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = read(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML config.") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a config in YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no keys at its outermost level; begin with 'output_dir: outputs/ava/my_run'.")
    return values


def _override(values: dict[str, Any], override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: give it as a.b=value, such as --set train.epochs=3.")
    try:
        _place(values, key.split("."), parse(text))
    except ValueError as error:
        raise ConfigError(f"--set {override}: {error}") from error
    return key, f"--set {override}"


def _place(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    block = values
    for depth, key in enumerate(keys[:-1], start=1):
        if block.get(key) is None:
            block[key] = {}
        block = block[key]
        if not isinstance(block, dict):
            raise ValueError(f"{'.'.join(keys[:depth])} is {block!r} and has no keys below it")  # noqa: TRY004  # no wrong type of ours.
    block[keys[-1]] = value


def _source(key: str, sources: Mapping[str, str], path: str) -> str:
    """Where the value at a key came from: an override of it, or the file and overrides of keys below it."""
    above = [source for given, source in sources.items() if f"{key}.".startswith(f"{given}.")]
    below = [source for given, source in sources.items() if given.startswith(f"{key}.")]
    return above[-1] if above else " and ".join([path, *below])
