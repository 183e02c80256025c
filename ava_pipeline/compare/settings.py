"""The settings in which two runs differ: of the training, of the recording, and of the machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ava_pipeline.compare.values import Value
from ava_pipeline.contract.manifest import Attempt, Group, Manifest
from ava_pipeline.many_runs.summary import settings_of
from ava_pipeline.read.run import Run

Subject = Literal["training", "recording", "environment"]
_NUM_NAMES = 5
_NO_VALUE = "no such setting"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting in which two runs differ.

    Attributes:
        name: dotted, e.g. `optim.base_lr`, `collect_every_n` or `versions.torch`.
        subject: `training` for what config.yaml or `run_info` says; `recording` for how telemetry was recorded and what
            its columns measure; `environment` for versions, host, device and the command line.
        a: the value in run A; None is a setting that is null.
        b: the value in run B.
        is_in_a: whether run A has the setting at all.
        is_in_b: whether run B has it.
    """

    name: str
    subject: Subject
    a: Value
    b: Value
    is_in_a: bool = True
    is_in_b: bool = True

    def texts(self) -> tuple[str, str]:
        """Both values for a person."""
        return _text(self.a, is_given=self.is_in_a), _text(self.b, is_given=self.is_in_b)


def training_settings(a: Run, b: Run) -> list[Setting]:
    """What differs in config.yaml, or else in the `run_info` of the manifest.

    Raise DamagedFileError if a file cannot be read.
    """
    return _differing("training", settings_of(a), settings_of(b))


def recorded_settings(a: Manifest, b: Manifest) -> list[Setting]:
    """What differs in two manifests: how telemetry was recorded, what its columns measure, and where the runs ran."""
    return [
        *_differing("recording", _recording(a), _recording(b)),
        *_differing_groups(a, b),
        *_differing("environment", _environment(a), _environment(b)),
    ]


def _differing(subject: Subject, a: Mapping[str, Value], b: Mapping[str, Value]) -> list[Setting]:
    names = sorted({*a, *b})
    return [
        Setting(name, subject, a.get(name), b.get(name), is_in_a=name in a, is_in_b=name in b)
        for name in names
        if name not in a or name not in b or _is_other(a[name], b[name])
    ]


def _is_other(a: Value, b: Value) -> bool:
    """1 and 1.0 are the same setting, 1 and true are not; nan is the same as nan."""
    if isinstance(a, bool) == isinstance(b, bool) and a == b:
        return False
    return repr(a) != repr(b)


def _recording(manifest: Manifest) -> dict[str, Value]:
    attempts = [attempt for attempt in manifest.attempts if attempt.counters.collected or len(manifest.attempts) == 1]
    every_n = [attempt.collect_every_n for attempt in attempts]
    changes = [n for place, n in enumerate(every_n) if place == 0 or n != every_n[place - 1]]
    formats = {f"formats.{name}": ",".join(sorted(entry.formats)) for name, entry in manifest.tables.items()}
    thresholds = manifest.attempts[-1].thresholds if manifest.attempts else {}
    return {
        "collect_every_n": ", then ".join(map(str, changes)),
        "resumed": ", ".join(f"from batch {attempt.resumed_from}" for attempt in attempts if attempt.resumed_from),
        **{f"rate_names.{column}": name for column, name in manifest.rate_names.items()},
        **{f"signs.{name}": value for name, value in thresholds.items()},
        **formats,
    }


def _differing_groups(a: Manifest, b: Manifest) -> list[Setting]:
    """Groups of one name that hold other parameters, are frozen in one run, or follow another learning rate."""
    found = []
    for name in sorted(set(a.groups) & set(b.groups)):
        one, other = a.groups[name], b.groups[name]
        if set(one.parameters) != set(other.parameters):
            texts = (_only_in(one.parameters, other.parameters), _only_in(other.parameters, one.parameters))
            found.append(Setting(f"groups.{name}.parameters", "recording", *texts))
        found += _differing("recording", _of_group(name, one), _of_group(name, other))
    return found


def _of_group(name: str, group: Group) -> dict[str, Value]:
    rates = ",".join(group.learning_rates)
    return {f"groups.{name}.trainable": group.trainable, f"groups.{name}.learning_rates": rates}


def _only_in(these: tuple[str, ...], others: tuple[str, ...]) -> str:
    names = sorted(set(these) - set(others))
    more = f" and {len(names) - _NUM_NAMES} more" if len(names) > _NUM_NAMES else ""
    return f"also {', '.join(names[:_NUM_NAMES])}{more}" if names else "no others"


def _environment(manifest: Manifest) -> dict[str, Value]:
    if not manifest.attempts:
        return {}
    last: Attempt = manifest.attempts[-1]
    return {
        "argv": json.dumps(last.argv),
        "device": last.device,
        "git_commit": last.git_commit,
        "host": last.host,
        **{f"versions.{name}": version for name, version in last.versions.items()},
    }


def _text(value: Value, *, is_given: bool) -> str:
    if not is_given:
        return _NO_VALUE
    return "null" if value is None else str(value) if value != "" else "none"
