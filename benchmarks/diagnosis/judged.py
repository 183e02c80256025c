"""A training and what was said of it: found, missed or false."""

from dataclasses import dataclass
from pathlib import Path

from ava_pipeline import open_run
from ava_pipeline.read.diagnose import diagnose_run
from benchmarks.diagnosis.faults import Fault
from benchmarks.diagnosis.settings import draw
from benchmarks.diagnosis.training import train

_SIGNS_ONLY_AFTERWARDS = {"gap": "telemetry-gap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One labelled training.

    Attributes:
        kind: of fault, or `healthy`.
        seed: of its settings.
        is_held_out: whether thresholds were fixed without it.
        is_well: nothing should be warned of.
        signs: warned of afterwards.
        on_line: warned of while training.
        is_found: what should be told was, and at its batch.
    """

    kind: str
    seed: int
    is_held_out: bool
    is_well: bool
    signs: tuple[str, ...]
    on_line: tuple[str, ...]
    is_found: bool


def judge(fault: Fault, seed: int, folder: Path, num_steps: int) -> Judged:
    """Train, diagnose and compare with the label."""
    setting = draw(fault.name, seed, num_steps)
    root = folder / f"{fault.name.replace(' ', '-').replace(':', '').replace(',', '')}-{seed}"
    if not root.exists():
        train(fault, setting, root)
    diagnosis = diagnose_run(root)
    events = open_run(root).events()
    warned = events[events["severity"] != "info"]
    on_line = {_SIGNS_ONLY_AFTERWARDS.get(name, name.replace("_", "-")) for name in warned["event"]}
    warnings = [finding for finding in diagnosis.findings if finding.severity != "info"]
    telling = [
        finding
        for finding in warnings
        if finding.sign in fault.signs and (fault.at is None or finding.batch_idx == fault.at)
    ]
    infos = {finding.sign for finding in diagnosis.findings if finding.severity == "info"}
    is_named = fault.at is None or all(
        not finding.sample_ids or finding.sample_ids[0] == f"image-{fault.at}-0" for finding in telling
    )
    is_told = bool(telling) and is_named if fault.signs else not warnings
    return Judged(
        kind=fault.name,
        seed=seed,
        is_held_out=setting.is_held_out,
        is_well=not fault.signs,
        signs=tuple(sorted({finding.sign for finding in warnings})),
        on_line=tuple(sorted(on_line)),
        is_found=is_told and (fault.told_as_info is None or fault.told_as_info in infos),
    )
