"""What a line about a run says: how it stands, how far it came, how well it predicts, what its numbers tell."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.metrics import HIGHER_IS_BETTER, Metrics
from ava_pipeline.read.diagnose import Verdict, diagnose_run
from ava_pipeline.read.predicted import read_predicted
from ava_pipeline.read.prediction_files import prediction_files
from ava_pipeline.read.pulse import status_now
from ava_pipeline.read.run import Run, open_run
from ava_pipeline.read.runs.settings import Value, settings_of
from ava_pipeline.signs.finding import Finding

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
        finding = None if self.finding is None else _finite(asdict(self.finding))
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
