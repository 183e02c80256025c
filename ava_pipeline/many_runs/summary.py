"""One run in short: its status, best metrics, settings and first finding."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ava_pipeline.contract.arrays import integers
from ava_pipeline.contract.builtin_tables import HOLDOUT
from ava_pipeline.contract.finding import Finding, finite_or_null
from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.contract.manifest import status_now
from ava_pipeline.contract.tables import BATCH
from ava_pipeline.diagnose.diagnose import Verdict, diagnose_run
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.metrics import HIGHER_IS_BETTER, Metrics
from ava_pipeline.read.history import OUR_NAMES
from ava_pipeline.read.holdout import ACCURACY, MAE, holdout_by_batch, holdout_columns
from ava_pipeline.read.old_run import ORIGIN
from ava_pipeline.read.predictions import read_predicted
from ava_pipeline.read.run import Run, open_run

UNREADABLE = "unreadable"
UNKNOWN = "unknown"
HOLDOUT_ACCURACY = f"holdout_{ACCURACY}"
_OF_PREDICTIONS = frozenset(metric.name for metric in fields(Metrics))
_LOWER_IS_BETTER = (_OF_PREDICTIONS - HIGHER_IS_BETTER) | {"train_loss", "val_loss"}
_KNOWN_METRICS = HIGHER_IS_BETTER | _LOWER_IS_BETTER  # which value of another metric is best cannot be known
_NEVER_COMPARED = {"output_dir"}  # differs between any two runs

Value: TypeAlias = str | float | bool | None


class Best(NamedTuple):
    """The best value of a metric, and the first epoch that reached it."""

    value: float
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run, as far as it can be read."""

    name: str
    path: Path
    status: str = UNREADABLE  # that of `status_now`; `unknown` without a manifest
    origin: str | None = None  # `no manifest` if another program wrote the run
    problem: str | None = None  # the reason if a part of the run cannot be read
    age_s: float | None = None  # since its first attempt started
    silent_s: float | None = None  # since its last sign of life
    last_batch: int | None = None
    last_epoch: int | None = None  # 0-based
    best: Mapping[str, Best] = field(default_factory=dict)  # by metric
    holdout: Mapping[str, float] = field(default_factory=dict)  # of the last collected step, by name
    settings: Mapping[str, Value] = field(default_factory=dict)  # by dotted names
    finding: Finding | None = None  # the warning or error at the earliest batch
    num_findings: int | None = None  # warnings and errors; None if the run was not diagnosed
    verdict: Verdict | None = None

    @property
    def is_generated(self) -> bool:
        """Whether its config trains on generated data."""
        return any(name.startswith("data.sample.") for name in self.settings)

    def values(self) -> dict[str, Value]:
        """The values by which runs are selected and sorted; a setting is hidden by a value of the same name."""
        values = {
            **self.settings,
            "run": self.name,
            "status": self.status,
            "age_s": self.age_s,
            "batch": self.last_batch,
            "epoch": self.last_epoch,
            "findings": self.num_findings,
            **self.holdout,
            **{name: best.value for name, best in self.best.items()},
        }
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for None and for settings that are not finite."""
        return {
            **{attribute.name: getattr(self, attribute.name) for attribute in fields(self)},
            "is_generated": self.is_generated,
            "path": str(self.path),
            "holdout": finite_or_null(self.holdout),
            "best": {name: best._asdict() for name, best in self.best.items()},
            "settings": finite_or_null(self.settings),
            "finding": None if self.finding is None else self.finding.to_json(),
        }


def summary_of(name: str, layout: RunLayout, *, now: datetime | None = None, findings: bool = True) -> Summary:
    """Summarise one run. The summary reports whatever is wrong with the run; nothing is raised.

    Ages are counted from `now`, by default the current time. With `findings` the run is diagnosed, which reads all of
    its rows.
    """
    parts: list[Callable[[Run], Mapping[str, Any]]] = [
        partial(_status, now=now or datetime.now(UTC)),
        _last_row,
        _best_metrics,
        _last_holdout,
        _settings,
    ]
    parts += [_first_finding] if findings else []
    attributes: dict[str, Any] = {}
    problems: list[str] = []
    for part in parts:
        try:
            attributes |= part(open_run(layout.root))
        except Exception as error:  # noqa: BLE001  # whatever is wrong with this run, the others are listed
            problems.append(str(error) or type(error).__name__)
        if "problem" in attributes:
            problems.append(attributes.pop("problem"))
    return Summary(name=name, path=layout.root, problem=problems[0] if problems else None, **attributes)


def _status(run: Run, *, now: datetime) -> dict[str, Any]:
    is_old = run.old is not None
    if not is_old and not run.layout.manifest.exists():
        return {"status": UNKNOWN}
    manifest = run.manifest
    silent = now - manifest.heartbeat_utc
    if is_old:  # when it started is not known
        return {"status": status_now(manifest, now), "origin": ORIGIN, "silent_s": silent.total_seconds()}
    started = manifest.attempts[0].started_utc if manifest.attempts else manifest.heartbeat_utc
    return {
        "status": status_now(manifest, now),
        "age_s": (now - started).total_seconds(),
        "silent_s": silent.total_seconds(),
    }


def _last_row(run: Run) -> dict[str, Any]:
    if not _has_manifest(run) or not run.manifest.tables:
        return {}
    tables = run.manifest.tables  # each step has rows in every one of them
    short = [name for name, entry in tables.items() if not entry.declaration.table.is_long] or list(tables)
    table = next((name for name in ("gradient_norms", "steps") if name in short), min(short))
    keys = run.ordered(table, columns=["batch_idx", "epoch"])
    last = keys.sort_by("batch_idx").slice(max(0, keys.num_rows - 1)).to_pylist()
    if last and run.old is not None and not run.old.count.is_known:
        return {"last_epoch": last[0]["epoch"]}
    return {"last_batch": last[0]["batch_idx"], "last_epoch": last[0]["epoch"]} if last else {}


def _best_metrics(run: Run) -> dict[str, Any]:
    best: dict[str, Best] = {}
    problems: list[str] = []
    for epoch, metrics in _metrics_by_epoch(run, problems):
        for name, value in metrics.items():
            if name in _KNOWN_METRICS and value is not None and math.isfinite(value):
                is_better = name not in best or _is_better(name, value, best[name].value)
                best |= {name: Best(value, epoch)} if is_better else {}
    return {"best": best, **({"problem": problems[0]} if problems else {})}


def _metrics_by_epoch(run: Run, problems: list[str]) -> Iterator[tuple[int, dict[str, float | None]]]:
    """From metrics.csv or a history, and those that they lack from the predictions of `val`.

    An epoch that cannot be read is added to `problems`.
    """
    missing = _OF_PREDICTIONS
    rows = run.arrow_metrics()
    if rows is not None and not run.layout.metrics.exists():
        rows = rows.rename_columns([OUR_NAMES.get(name, name) for name in rows.column_names])
    if rows is not None:
        missing -= set(rows.column_names)
        for row in rows.to_pylist():
            yield row["epoch"], row
    for file in prediction_files(run.layout) if missing else ():
        if file.name == "val":
            try:
                predicted = read_predicted(file.path)
            except DamagedFileError as error:
                problems.append(str(error))
            else:
                yield (
                    file.epoch,
                    {name: value for name, value in asdict(predicted.metrics()).items() if name in missing},
                )


def _last_holdout(run: Run) -> dict[str, Any]:
    """The means over the held-out samples at the last collected step, as `holdout_accuracy` or `holdout_mae`."""
    manifest = run.manifest if run.layout.manifest.exists() else None
    if manifest is None or HOLDOUT not in manifest.tables:
        return {}
    batches = np.unique(integers(run.ordered(HOLDOUT, columns=[BATCH]), BATCH))
    columns = holdout_columns(manifest.tables[HOLDOUT].declaration.column_names)
    if not len(batches) or not columns:
        return {}
    # With the step before the last, which shows whether the last is complete.
    found = holdout_by_batch([run.ordered(HOLDOUT, columns=columns, batches=(int(batches[-2:][0]), None))])
    means = found.values if found is not None else {}
    return {"holdout": {f"holdout_{name}": float(means[name][-1]) for name in (ACCURACY, MAE) if name in means}}


def _is_better(name: str, value: float, best: float) -> bool:
    return value < best if name in _LOWER_IS_BETTER else value > best


def _settings(run: Run) -> dict[str, Any]:
    return {"settings": settings_of(run)}


def _first_finding(run: Run) -> dict[str, Any]:
    if not _has_manifest(run):
        return {}
    diagnosis = diagnose_run(run)
    findings = [finding for finding in diagnosis.findings if finding.severity != "info"]
    first = min(findings, key=lambda finding: finding.batch_idx, default=None)
    return {"finding": first, "num_findings": len(findings), "verdict": diagnosis.verdict}


def _has_manifest(run: Run) -> bool:
    """Whether tables are known: from a manifest, or from the files of another program."""
    return run.layout.manifest.exists() or run.old is not None


def settings_of(run: Run) -> dict[str, Value]:
    """The run's config.yaml, else its manifest's `run_info`, by dotted names: `{"optim.base_lr": 0.001}`.

    Raise DamagedFileError if the file cannot be read, or is a link that leads out of the run.
    """
    return {name: value for name, value in _flat("", run.settings()) if name not in _NEVER_COMPARED}


def _flat(prefix: str, values: Mapping[Any, Any]) -> Iterator[tuple[str, Value]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(f"{name}.", value)
        elif value is None or isinstance(value, str | int | float):
            yield name, value
        else:
            yield name, json.dumps(value, default=str)


def differing_settings(settings: Sequence[Mapping[str, Value]]) -> list[str]:
    """Names of the settings in which runs differ, sorted; runs without any settings are left out."""
    known = [values for values in settings if values]
    names = sorted({name for values in known for name in values})
    return [name for name in names if len({repr(values.get(name)) for values in known}) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each name, or the whole name if another name has the same last part."""
    counts = Counter(map(last_part, names))
    return {name: last_part(name) if counts[last_part(name)] == 1 else name for name in names}


def last_part(name: str) -> str:
    """`base_lr` of `optim.base_lr`."""
    return name.rpartition(".")[2]
