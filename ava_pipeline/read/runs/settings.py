"""What a run was told to do, as names and plain values, and where runs differ in it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ava_pipeline import yaml_text
from ava_pipeline.contract.inside import check_name
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.run import Run

Value: TypeAlias = str | float | bool | None
_TELLS_NOTHING = {"output_dir"}  # each run has its own


def settings_of(run: Run) -> dict[str, Value]:
    """The run's config.yaml, else its manifest's `run_info`: `{"optim.base_lr": 0.001}`.

    Raises:
        DamagedFileError: the file that is there cannot be read, or is a link out of the run.
    """
    return {name: value for name, value in _flat("", _given(run)) if name not in _TELLS_NOTHING}


def differing(settings: Sequence[Mapping[str, Value]]) -> list[str]:
    """Names of the settings in which runs differ, or that only some of them have; a run without any says nothing."""
    told = [one for one in settings if one]
    names = sorted({name for one in told for name in one})  # in one order, however the runs are sorted
    return [name for name in names if len({repr(one.get(name)) for one in told}) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name's last part, where no other one has it."""
    times = Counter(map(last_part, names))
    return {name: last_part(name) if times[last_part(name)] == 1 else name for name in names}


def last_part(name: str) -> str:
    """`base_lr` of `optim.base_lr`."""
    return name.rpartition(".")[2]


def _given(run: Run) -> Mapping[str, Any]:
    path = run.layout.config
    if not path.exists():
        return run.manifest.run_info if run.layout.manifest.exists() else {}
    check_name(run.layout, path)
    try:
        values = yaml_text.read(path)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}. Restore it, or move it away.") from error
    return values if isinstance(values, dict) else {}


def _flat(prefix: str, values: Mapping[Any, Any]) -> Iterator[tuple[str, Value]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(f"{name}.", value)
        elif value is None or isinstance(value, str | int | float):
            yield name, value
        else:
            yield name, json.dumps(value, default=str)
