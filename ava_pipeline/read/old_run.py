"""Run directories of hand-written collectors, read as if they were ours: without a manifest, and without any import.

Such a directory holds CSV or Parquet tables with `batch_idx` and `epoch`, in `telemetry/` or in itself. A manifest is
made from them in memory, so that every reader of runs works: tables, groups and their roles, and a status as far as
the log and the results prove one. What is only assumed is said by `OldRun.notes`. Nothing is written.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ava_pipeline.contract.arrays import null_mask
from ava_pipeline.contract.builtin_tables import PER_LAYER_STATS, STEPS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.contract.manifest import Group, Manifest, Role, Status, TableEntry
from ava_pipeline.contract.parquet import parquet_schema
from ava_pipeline.contract.tables import TABLE_KEY
from ava_pipeline.contract.untrusted import check_name
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.batch_count import BatchCount, count_batches
from ava_pipeline.read.csv import first_columns
from ava_pipeline.read.eval_dump import pair_files
from ava_pipeline.read.history import HISTORY, RESULTS, num_epochs_of, read_results
from ava_pipeline.read.old_tables import NORMS, OldTable, describe, is_table, read_raw, read_rows
from ava_pipeline.read.settings import read_settings
from ava_pipeline.read.training_log import LOG, TrainingLog, read_log

T = TypeVar("T")

ORIGIN = "no manifest"
# Of tables that are written whatever is measured, columns that no other program names so.
_OUR_COLUMNS = {EVENTS.name: {"batch_idx_end", "time_utc", "severity"}, STEPS.name: {"time_utc", "loss_scale"}}
_OVERALL, _HEAD = "overall", "mlp_head"
_HEADS = frozenset({"head", "mlp_head", "mlp", "classifier", "fc"})
_HEAD_LAYER = re.compile(r"mlp_layer_\d+")
_SUFFIXES = (".parquet", ".csv")
_MAX_EPOCHS_KEYS = ("max_epochs", "epochs", "num_epochs")


class _Facts(NamedTuple):
    """What the files beside the tables say, and those that cannot be read."""

    log: TrainingLog
    num_epochs: int | None  # in the history
    results: dict[str, Any]
    settings: dict[str, Any]
    problems: dict[Path, DamagedFileError]


class Ending(NamedTuple):
    """The status of a run, and the file that proves it."""

    status: Status
    proof: str


def find_old_run(layout: RunLayout) -> "OldRun | None":
    """The run at a directory, if another program wrote it; None for ours, even one that lost its manifest."""
    if layout.manifest.exists():
        return None
    if layout.telemetry.is_dir() and (is_ours(layout.telemetry) or _tables_in(layout.telemetry)):
        return None if is_ours(layout.telemetry) else OldRun(layout, layout.telemetry)
    if not layout.root.is_dir() or layout.root.name == layout.telemetry.name or is_ours(layout.root):
        return None
    return OldRun(layout, layout.root) if _tables_in(layout.root) else None


def is_ours(folder: Path) -> bool:
    """Whether this package wrote a folder of tables, as its journals, events, steps or metadata in Parquet show."""
    if any(folder.glob("*.journal")) or any((folder / name).exists() for name in ("manifest.json", "writer.lock")):
        return True
    for name, columns in _OUR_COLUMNS.items():
        path = folder / f"{name}.csv"
        if path.is_file() and columns <= set(first_columns(path)):
            return True
    return any(map(_has_our_metadata, sorted(folder.glob("*.parquet"))))


def _has_our_metadata(path: Path) -> bool:
    try:
        return TABLE_KEY in (parquet_schema(path).metadata or {})
    except DamagedFileError:
        return False


def _tables_in(folder: Path) -> dict[str, Path]:
    """The files with `batch_idx` and `epoch` by the name of their table; of two formats, CSV, which is never torn."""
    found: dict[str, Path] = {}
    for suffix in _SUFFIXES:
        paths = (path for path in sorted(folder.glob(f"*{suffix}")) if path.stem != "metrics")
        found |= {path.stem: path for path in paths if path.is_file() and is_table(path)}
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class OldRun:
    """A run that another program wrote. What it knows is of the moment it was made; `find_old_run` makes a new one.

    Attributes:
        folder: where the tables are: `telemetry/`, or the directory itself.
    """

    layout: RunLayout
    folder: Path

    @cached_property
    def tables(self) -> dict[str, OldTable]:
        """The tables that can be read, by name."""
        return {name: table for name, table in self._described.items() if isinstance(table, OldTable)}

    @cached_property
    def problems(self) -> dict[Path, DamagedFileError]:
        """The tables and other files that cannot be read, by path; but not config.yaml, which is read if it can be."""
        tables = {error[0]: error[1] for error in self._described.values() if isinstance(error, tuple)}
        of_config = {self.layout.config}
        others = {path: error for path, error in self._facts.problems.items() if path not in of_config}
        return tables | others

    @property
    def settings(self) -> dict[str, Any]:
        """What config.yaml says; empty without one, and if it cannot be read, which `notes` says."""
        return self._facts.settings

    @cached_property
    def _facts(self) -> "_Facts":
        problems: dict[Path, DamagedFileError] = {}

        def attempt(name: str, read: Callable[[RunLayout], T], default: T) -> T:
            path = self.layout.root / name
            try:
                return read(self.layout) if path.exists() else default
            except DamagedFileError as error:
                problems[path] = error
                return default

        return _Facts(
            log=attempt(LOG, read_log, TrainingLog()),
            num_epochs=attempt(HISTORY, num_epochs_of, None),
            results=attempt(RESULTS, read_results, {}),
            settings=attempt(self.layout.config.name, read_settings, {}),
            problems=problems,
        )

    @cached_property
    def _described(self) -> "dict[str, OldTable | tuple[Path, DamagedFileError]]":
        found: dict[str, OldTable | tuple[Path, DamagedFileError]] = {}
        for name, path in _tables_in(self.folder).items():
            try:
                check_name(self.layout, path)
                found[name] = describe(path)
            except DamagedFileError as error:
                found[name] = (path, error)
        return found

    @cached_property
    def count(self) -> BatchCount:
        """How the batches are counted over the run."""
        return count_batches((table.batches for table in self.tables.values()), self._facts.log.batches)

    @cached_property
    def manifest(self) -> Manifest:
        """A manifest of what the files show; it lists no attempt, since who wrote them is not known."""
        ending = self.ending
        facts = {"origin": ORIGIN, "status from": ending.proof, **self._facts.results}
        return Manifest(
            status=ending.status,
            heartbeat_utc=self._latest_change(),
            tables={name: TableEntry(declaration=table.declaration, formats=()) for name, table in self.tables.items()},
            groups=self.groups,
            run_info=facts,
        )

    def read(self, name: str, *, in_order: bool) -> Any:
        """The rows of a table; see `read_rows`. Raise DamagedFileError if they cannot be read."""
        return read_rows(self.tables[name], self.count, in_order=in_order)

    def files(self) -> Iterator[Path]:
        """The files whose changes mean that the run is being written."""
        yield from (table.path for table in self.tables.values())
        yield from (self.layout.root / name for name in (LOG, HISTORY, RESULTS))
        yield from (file.path for file in prediction_files(self.layout))
        yield from (file.path for file in pair_files(self.layout))

    def _latest_change(self) -> datetime:
        times = [path.stat().st_mtime for path in self.files() if path.is_file()]
        return datetime.fromtimestamp(max(times, default=self.folder.stat().st_mtime), UTC)

    @cached_property
    def ending(self) -> Ending:
        """The status that the files prove: `unknown` if they say nothing of the end.

        `running` means that epochs are still to come; `status_now` makes it `killed` once the files no longer change.
        """
        log, done = self._facts.log, self._facts.num_epochs
        planned = self._planned_epochs() or log.num_epochs
        if (self.layout.root / RESULTS).is_file():
            return Ending("finished", RESULTS)
        if log.ended_by is not None:
            return Ending(log.ended_by, LOG)
        if log.stopped_early:
            return Ending("finished", f"{LOG}, which names early stopping")
        if planned is not None and done is not None:
            text = f"{HISTORY}, which has {done} of {planned} epochs"
            return Ending("finished" if done >= planned else "running", text)
        if log.progress is not None and log.progress.epoch < log.progress.num_epochs:
            return Ending("running", f"{LOG}, which ends in epoch {log.progress.epoch} of {log.progress.num_epochs}")
        return Ending("unknown", "no file says how it ended")

    def _planned_epochs(self) -> int | None:
        blocks = [self.settings, *(value for value in self.settings.values() if isinstance(value, dict))]
        values = [block.get(key) for block in blocks for key in _MAX_EPOCHS_KEYS]
        return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups of the norms and the weight deltas, with the roles that their names say.

        Their parameters are known only if per_layer_stats lists them. Without, the layers of a head are parts of it by
        their names, and no other norms are expected to add up. A column that was never measured has no role.
        """
        columns = dict.fromkeys(
            name
            for table in self.tables.values()
            if table.declaration.table.l2_of_groups
            for name in table.declaration.run_column_names
        )
        unmeasured = set(self.unmeasured)
        members = self._parameters(list(columns))
        rates = self.tables.get("learning_rates")
        rate_names = set(rates.declaration.run_column_names) if rates else set()
        return {
            name: Group(
                role="other" if name in unmeasured else _role(name),
                parent=_parent(name, columns, unmeasured, members),
                parameters=members.get(name, ()),
                learning_rates=(name,) if name in rate_names else (),
            )
            for name in columns
        }

    def _parameters(self, columns: list[str]) -> dict[str, tuple[str, ...]]:
        """The parameters of each group, from the names in per_layer_stats; empty unless each is in one group."""
        layers = self.tables.get(PER_LAYER_STATS.name)
        parts = [name for name in columns if name != _OVERALL]
        if layers is None or "layer_name" not in layers.declaration.column_names or _OVERALL not in columns:
            return {}
        names = list(dict.fromkeys(map(str, read_raw(layers.path).column("layer_name").to_pylist())))
        members = {part: tuple(name for name in names if _is_in(part, name)) for part in parts}
        num_members = sum(map(len, members.values()))
        if not all(members.values()) or num_members != len(set().union(*members.values())):
            return {}
        return {_OVERALL: tuple(names), **members}

    @cached_property
    def unmeasured(self) -> tuple[str, ...]:
        """The columns of gradient_norms that are null in every row: the collector did not find what they name."""
        table = self.tables.get(NORMS)
        if table is None or not table.declaration.table.l2_of_groups:
            return ()
        rows = self.read(NORMS, in_order=True)
        return tuple(
            name for name in table.declaration.run_column_names if rows.num_rows and null_mask(rows.column(name)).all()
        )

    def notes(self) -> list[Finding]:
        """What is assumed about the run, as findings of severity info; a table that cannot be read is an error."""
        notes = [_note(sign, message) for sign, message in self._notes()]
        return [*notes, *(self._damage(path, error) for path, error in self.problems.items())]

    def _damage(self, path: Path, error: DamagedFileError) -> Finding:
        message = f"it cannot be read, and nothing is known of its rows: {str(error).removeprefix(f'{path}: ')}"
        return Finding(id="unreadable", severity="error", message=message, file=path.name)

    def _notes(self) -> Iterator[tuple[str, str]]:
        status, proof = self.ending
        yield "no-manifest", f"{ORIGIN}: another program wrote these files. Status {status}: {proof}."
        if self.count.offsets:
            yield "batches-by-epoch", self._count_in_words()
        if self.count.shift:
            yield "batches-by-epoch", "batch_idx begins at 0 in the files; here the first batch is 1."
        for name in self.unmeasured:
            message = f"{name} is 0 in every row of {NORMS}, while others are not: it was not measured, and is null."
            yield "not-measured", message
        if self.layout.config in self._facts.problems:
            yield "settings-unknown", f"config.yaml is not read: {self._facts.problems[self.layout.config]}"
        for table in self.tables.values():
            if table.begin:
                rows = f"{table.begin} rows of an earlier training"
                yield "earlier-training", f"{table.path.name} begins with {rows}, which are left out."
            if table.left_out:
                names = ", ".join(map(repr, table.left_out))
                yield "left-out", f"{table.path.name}: {names} cannot name a column, and is left out."

    def _count_in_words(self) -> str:
        begin = "batch_idx starts again in each epoch in the files"
        if self.count.is_known:
            source = f"Batches per epoch are known from {self.count.source}."
            return f"{begin}; here it counts on over the run. {source}"
        highest = self.count.per_epoch
        return (
            f"{begin}, and none of them says how many batches an epoch has: rows are named by epoch and batch. Plots "
            f"place batch b of epoch e at e x {highest} + b, because {highest} is the highest batch recorded; that is "
            "an order, and no count of batches."
        )


def _note(sign: str, message: str) -> Finding:
    return Finding(id=sign, severity="info", message=message)


def placed(finding: Finding, count: BatchCount) -> Finding:
    """The finding with its place in words, if the batches of its run are not counted over the run."""
    if count.is_known or not finding.batch_idx:
        return finding
    first, last = count.text(finding.batch_idx), count.text(finding.batch_idx_end)
    return replace(finding, where=first if first == last else f"{first} to {last}")


def _role(name: str) -> Role:
    if name == _OVERALL:
        return "overall"
    if _HEAD_LAYER.fullmatch(name):
        return "head_layer"
    if name in _HEADS:
        return "head"
    return "backbone_last" if name.startswith("backbone") else "other"


def _parent(
    name: str, columns: Mapping[str, Any], unmeasured: set[str], members: Mapping[str, tuple[str, ...]]
) -> str | None:
    if name in unmeasured or (unmeasured and _HEAD_LAYER.fullmatch(name) and unmeasured & _head_parts(columns)):
        return None
    if _HEAD_LAYER.fullmatch(name):
        return _HEAD if _HEAD in columns else None
    return _OVERALL if name != _OVERALL and name in members else None


def _head_parts(columns: Mapping[str, Any]) -> set[str]:
    return {name for name in columns if name == _HEAD or _HEAD_LAYER.fullmatch(name)}


def _is_in(group: str, parameter: str) -> bool:
    """Whether a parameter is of a group, by the first part of its name; a head has several names."""
    first = parameter.partition(".")[0]
    return first == group or (group in _HEADS and first in _HEADS)
