"""Read and write the YAML config of a run, and YAML without its surprises.

PyYAML follows YAML 1.1, in which `off` is false, `1e-3` is text, and the second of two equal keys silently wins. Here
`true` and `false` are the only booleans and `1e-3` is a number. Duplicate keys, tags (`!!int x`, `!!python/...`) and
aliases, a few lines of which can expand to gigabytes, are refused.
"""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ava_pipeline.config.messages import describe_errors
from ava_pipeline.config.models import RunConfig
from ava_pipeline.errors import ConfigError

MAX_CHARS = 1_000_000
_MAX_BYTES = 4 * MAX_CHARS

# The scalars of YAML 1.2: a pattern, and the characters that such a scalar may start with.
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


def load_config(path: str | PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config of a run.

        config = load_config("configs/demo.yaml", ["train.epochs=3", "output_dir=outputs/ava/try"])

    Args:
        path: a YAML file.
        overrides: settings that replace those of the file, as `a.b=value`; the value is YAML.

    Raises:
        ConfigError: the file cannot be read, or a setting cannot be used. Each problem is one line with the file or
            override, the key, what was expected and what was given.
    """
    values = _read_mapping(Path(path))
    sources = dict(_apply_override(values, override) for override in overrides)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        described = describe_errors(error, RunConfig, source_of=lambda key: _source(key, sources, str(path)))
        raise ConfigError(described) from error


def dump_config(config: RunConfig) -> str:
    """Write a config as YAML that `load_config` reads back as an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def read_yaml(path: Path) -> Any:
    """Read one YAML document; raise OSError if that fails, ValueError as `parse_yaml` or if it is too large."""
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"expected at most {MAX_CHARS:,} characters, got more than {_MAX_BYTES:,} bytes")
    return parse_yaml(data.decode("utf-8-sig"))


def parse_yaml(text: str) -> Any:
    """Parse one YAML document to plain dicts, lists, strings, numbers, booleans and None.

    Raise ValueError, naming the line, if the text is not YAML, is longer than `MAX_CHARS`, or uses a refused feature.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"expected at most {MAX_CHARS:,} characters, got {len(text):,}; is this a config?")
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{place}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply; a config has a few levels") from error


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML that `parse_yaml`, and every reader of YAML 1.1, reads back as the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML config.") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a YAML config: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys at the top level, such as 'output_dir: outputs/ava/my_run'.")
    return values


def _apply_override(values: dict[str, Any], override: str) -> tuple[str, str]:
    """Put an override into the file's values; return its key and its name in messages."""
    name = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{name}: expected a.b=value, such as --set train.epochs=3.")
    try:
        _set_value(values, key.split("."), parse_yaml(text))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    return key, name


def _set_value(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    block = values
    for depth, key in enumerate(keys[:-1], start=1):
        if block.get(key) is None:
            block[key] = {}
        block = block[key]
        if not isinstance(block, dict):
            message = f"{'.'.join(keys[:depth])} is {block!r} and has no keys below it"
            raise ValueError(message)  # noqa: TRY004  # the value of a setting, not the type of an argument
    block[keys[-1]] = value


def _source(key: str, sources: Mapping[str, str], path: str) -> str:
    """The override that set a key or a block above it, or else the file and the overrides of keys below it."""
    above = [source for changed, source in sources.items() if f"{key}.".startswith(f"{changed}.")]
    below = [source for changed, source in sources.items() if changed.startswith(f"{key}.")]
    return above[-1] if above else " and ".join([path, *below])


class _Loader(yaml.SafeLoader):
    """Reads plain values, with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own name and type

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
        if self.check_event(yaml.AliasEvent):
            raise _refusal(f"*{event.anchor} is an alias; write its value instead", event.start_mark)
        if event.tag is not None:
            raise _refusal(f"{event.tag!r} is a tag; write a plain value, and text in quotes", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  # PyYAML's signature
        keys: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in keys:
                raise _refusal(f"the key {key.value!r} is given twice; keep one of them", key.start_mark)
            keys.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _refusal(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as a number or boolean, and escapes rare line breaks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML turns these into spaces unless they are escaped, which only double quotes allow.
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _name, (_pattern, _first) in _SCALARS.items():
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, list(_first))
