"""One training and the signs that were found in it: right, missed or false."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ava_pipeline import open_run
from ava_pipeline.contract.events import samples_in
from ava_pipeline.diagnose.diagnose import diagnose_run
from ava_pipeline.signs.registry import SIGNS_WITH_SAMPLES
from benchmarks.diagnosis.faults import Fault
from benchmarks.diagnosis.settings import draw
from benchmarks.diagnosis.training import train

_SIGNS_OF_EVENTS = {"gap": "telemetry-gap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One labelled training.

    Attributes:
        kind: name of the fault, or `healthy`.
        seed: seed of its settings.
        is_held_out: whether thresholds were chosen without it.
        is_well: no warning is right.
        signs: warnings of `diagnose`.
        while_training: warnings while training.
        is_found: the right sign was found, at its batch, and with its samples if the fault is a single batch.
        is_found_while_training: the same for warnings while training, which leave out information.
    """

    kind: str
    seed: int
    is_held_out: bool
    is_well: bool
    signs: tuple[str, ...]
    while_training: tuple[str, ...]
    is_found: bool
    is_found_while_training: bool


class _Warning(NamedTuple):
    """A warning of `diagnose`, or one while training."""

    sign: str
    batch_idx: int
    sample_ids: tuple[str, ...]


def judge(fault: Fault, seed: int, folder: Path, num_steps: int) -> Judged:
    """Train, diagnose and compare with the label."""
    setting = draw(fault.name, seed, num_steps)
    root = folder / f"{fault.name.replace(' ', '-').replace(':', '').replace(',', '')}-{seed}"
    if not root.exists():
        train(fault, setting, root)
    return judged_run(fault, seed, root)


def judged_run(fault: Fault, seed: int, root: Path) -> Judged:
    """Compare the signs found in a run with its label."""
    diagnosis = diagnose_run(root)
    warnings = [
        _Warning(one.sign, one.batch_idx, one.sample_ids) for one in diagnosis.findings if one.severity != "info"
    ]
    while_training = _warnings_while_training(root)
    infos = {finding.sign for finding in diagnosis.findings if finding.severity == "info"}
    return Judged(
        kind=fault.name,
        seed=seed,
        is_held_out=draw(fault.name, seed).is_held_out,
        is_well=not fault.signs,
        signs=_signs(warnings),
        while_training=_signs(while_training),
        is_found=_is_found(fault, warnings) and (fault.found_as_info is None or fault.found_as_info in infos),
        is_found_while_training=_is_found(fault, while_training),
    )


def _warnings_while_training(root: Path) -> list[_Warning]:
    events = open_run(root).events()
    return [
        _Warning(_sign_of(str(one["event"])), int(one["batch_idx"]), samples_in(str(one["message"])))
        for one in events[events["severity"] != "info"].to_dict("records")
    ]


def _sign_of(event: str) -> str:
    return _SIGNS_OF_EVENTS.get(event, event.replace("_", "-"))


def _signs(warnings: Sequence[_Warning]) -> tuple[str, ...]:
    return tuple(sorted({one.sign for one in warnings}))


def _is_found(fault: Fault, warnings: Sequence[_Warning]) -> bool:
    """Whether a sign of the fault was found at its place, or no sign if the training is healthy."""
    return any(_is_right(fault, one) for one in warnings) if fault.signs else not warnings


def _is_right(fault: Fault, warning: _Warning) -> bool:
    if warning.sign not in fault.signs or fault.at not in {None, warning.batch_idx}:
        return False
    return (
        fault.at is None or warning.sign not in SIGNS_WITH_SAMPLES or warning.sample_ids[:1] == (f"image-{fault.at}-0",)
    )
