"""What a run was told to do, as names and plain values, and where runs differ in it."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ava_pipeline.config import load
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.untrusted import check_name
from ava_pipeline.diagnose.diagnose import Verdict, diagnose_run
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.metrics import HIGHER_IS_BETTER, Metrics
from ava_pipeline.read.predictions import read_predicted
from ava_pipeline.read.run import Run, open_run
from ava_pipeline.read.status import status_now

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
        values = load.read(path)
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


METRICS = tuple(one.name for one in fields(Metrics))
BEST_IS_LOWEST = frozenset({"train_loss", *METRICS}) - HIGHER_IS_BETTER
UNREADABLE = "unreadable"
UNKNOWN = "unknown"

Piece: TypeAlias = Callable[[Run], Mapping[str, Any]]


class Best(NamedTuple):
    """A metric's best value, and the epoch that reached it first."""

    value: float
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run, as far as it could be read.

    Attributes:
        name: what tells it from the others.
        path: its directory.
        status: the manifest's; `killed` where it says running and shows no sign of life; `unknown` where there is no
            manifest, `unreadable` where it cannot be read.
        problem: why not all of it could be read.
        age_s: seconds since its first attempt began.
        silent_s: seconds since its last sign of life.
        last_batch: the last collected `batch_idx`.
        last_epoch: its 0-based epoch.
        best: each metric's best, of metrics.csv or else of the predictions of the set `val`.
        settings: of config.yaml, else of the manifest's `run_info`, by dotted names.
        finding: of the warnings and errors, the one that shows at the earliest batch; None where there is none.
        num_findings: warnings and errors; None where they were not looked for.
        verdict: what `diagnose` says in a word; None where it was not asked.
    """

    name: str
    path: Path
    status: str = UNREADABLE
    problem: str | None = None
    age_s: float | None = None
    silent_s: float | None = None
    last_batch: int | None = None
    last_epoch: int | None = None
    best: Mapping[str, Best] = field(default_factory=dict)
    settings: Mapping[str, Value] = field(default_factory=dict)
    finding: Finding | None = None
    num_findings: int | None = None
    verdict: Verdict | None = None

    @property
    def is_generated(self) -> bool:
        """Whether it was trained on generated data, as its config says."""
        return any(name.startswith("data.sample.") for name in self.settings)

    def values(self) -> dict[str, Value]:
        """What runs are chosen and sorted by; a figure of its own goes before a setting of that name."""
        own = {
            "run": self.name,
            "status": self.status,
            "age_s": self.age_s,
            "batch": self.last_batch,
            "epoch": self.last_epoch,
            "findings": self.num_findings,
            **{name: best.value for name, best in self.best.items()},
        }
        return {name: value for name, value in {**self.settings, **own}.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where there is none."""
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        finding = None if self.finding is None else self.finding.to_json()
        best = {name: best._asdict() for name, best in self.best.items()}
        told["is_generated"] = self.is_generated
        return {**told, "path": str(self.path), "best": best, "settings": _finite(self.settings), "finding": finding}


def summary_of(name: str, layout: RunLayout, *, now: datetime | None = None, findings: bool = True) -> Summary:
    """Look at one run. Whatever is wrong with it is told in the summary.

    Args:
        name: what tells it from the others.
        layout: of its directory.
        now: what ages are counted to; left out, the time of day.
        findings: whether its numbers are looked through for signs, which reads all of them.
    """
    pieces: list[Piece] = [partial(_state, now=now or datetime.now(UTC)), _reached, _best, _settings]
    pieces += [_findings] if findings else []
    told: dict[str, Any] = {}
    for piece in pieces:
        try:
            told = {**told, **piece(open_run(layout.root)), **_first_problem(told)}
        except Exception as error:  # noqa: BLE001  # whatever is wrong with this run, the others are to be listed
            told.setdefault("problem", str(error) or type(error).__name__)
    return Summary(name=name, path=layout.root, **told)


def _first_problem(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"problem": told["problem"]} if "problem" in told else {}


def _state(run: Run, *, now: datetime) -> dict[str, Any]:
    if not run.layout.manifest.exists():
        return {"status": UNKNOWN}
    manifest = run.manifest
    silent = now - manifest.heartbeat_utc
    started = manifest.attempts[0].started_utc if manifest.attempts else manifest.heartbeat_utc
    return {
        "status": status_now(manifest, now),
        "age_s": (now - started).total_seconds(),
        "silent_s": silent.total_seconds(),
    }


def _reached(run: Run) -> dict[str, Any]:
    if not run.layout.manifest.exists() or not run.manifest.tables:
        return {}
    keys = run.arrow(_any_table(run.manifest), columns=["batch_idx", "epoch"])
    last = keys.sort_by("batch_idx").slice(max(0, keys.num_rows - 1)).to_pylist()
    return {"last_batch": last[0]["batch_idx"], "last_epoch": last[0]["epoch"]} if last else {}


def _any_table(manifest: Manifest) -> str:
    """Each step has a row in every measure's table."""
    return "gradient_norms" if "gradient_norms" in manifest.tables else min(manifest.tables)


def _best(run: Run) -> dict[str, Any]:
    best: dict[str, Best] = {}
    problems: list[str] = []
    for epoch, figures in _epochs(run, problems):
        for name, value in figures.items():
            if math.isfinite(value) and (name not in best or _is_better(name, value, best[name].value)):
                best[name] = Best(value, epoch)
    return {"best": best, **({"problem": problems[0]} if problems else {})}


def _epochs(run: Run, problems: list[str]) -> Iterator[tuple[int, dict[str, float]]]:
    """Each epoch's figures; predictions that cannot be read are told, and the other epochs count."""
    if run.layout.metrics.exists():
        for row in run.metrics().to_dict("records"):
            yield int(row["epoch"]), {str(name): float(value) for name, value in row.items() if name != "epoch"}
        return
    for file in prediction_files(run.layout):
        if file.name == "val":
            try:
                predicted = read_predicted(file.path)
            except DamagedFileError as error:
                problems.append(str(error))
            else:
                yield file.epoch, asdict(predicted.metrics())


def _is_better(name: str, value: float, best: float) -> bool:
    return value < best if name in BEST_IS_LOWEST else value > best


def _settings(run: Run) -> dict[str, Any]:
    return {"settings": settings_of(run)}


def _findings(run: Run) -> dict[str, Any]:
    if not run.layout.manifest.exists():
        return {}
    diagnosis = diagnose_run(run)
    found = [finding for finding in diagnosis.findings if finding.severity != "info"]
    first = min(found, key=lambda one: one.batch_idx, default=None)
    return {"finding": first, "num_findings": len(found), "verdict": diagnosis.verdict}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no nan and no inf."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
