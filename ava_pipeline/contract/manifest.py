"""telemetry/manifest.json: the tables of a run, the attempts that wrote them, and the rows they collected and wrote."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.tables import SCHEMA_VERSION, RunTable
from ava_pipeline.contract.untrusted import MAX_MANIFEST_BYTES, read_small_file
from ava_pipeline.errors import DamagedFileError

TRAIN_JOB: Final = "ava-pipeline train"  # the `job` in the run_info of its runs
KILLED_AFTER = timedelta(minutes=2)  # a running run whose heartbeat is older was killed

Count = Annotated[int, Field(ge=0)]
Role = Literal["overall", "head", "head_layer", "backbone_last", "other"]
# `unknown` is the status of a run without a manifest, of which no file says how it ended.
Status = Literal["running", "finished", "failed", "interrupted", "killed", "unknown"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class GroupSpan(_Entry):
    """What a group was from one batch on, until its next span."""

    first_batch: Annotated[int, Field(ge=1)]
    parent: str | None = None
    parameters: tuple[str, ...] = Field(description="Empty if the model did not have the group: its column is null.")
    trainable: bool | None = None
    learning_rates: tuple[str, ...] = ()


class Group(_Entry):
    """A group: the parameters that one column measures; as it is now, or was when the model last had it."""

    role: Role
    parent: str | None = Field(default=None, description="The smallest group that contains all of this one.")
    parameters: tuple[str, ...] = Field(description="Names of its parameters in the model.")
    trainable: bool | None = Field(default=None, description="Whether any of them requires gradients; null if unknown.")
    learning_rates: tuple[str, ...] = Field(
        default=(), description="Columns of learning_rates whose optimizer groups hold any of them."
    )
    spans: tuple[GroupSpan, ...] = Field(
        default=(), description="How the group changed during the run, by first batch; empty if it never did."
    )

    def at(self, batch_idx: int) -> "Group | None":
        """The group as it was at a batch; None if the model did not have it then."""
        if not self.spans:
            return self
        span = next((span for span in reversed(self.spans) if span.first_batch <= batch_idx), None)
        if span is None or not span.parameters:
            return None
        return Group(role=self.role, **span.model_dump(exclude={"first_batch"}))

    def changed(self, new: "Group | None", first_batch: int) -> "Group":
        """The group with a further span if it is another one from `first_batch` on; None if the model lacks it then."""
        spans = [span for span in self.spans or (_span(self, 1),) if span.first_batch < first_batch]
        span = GroupSpan(first_batch=first_batch, parameters=()) if new is None else _span(new, first_batch)
        if spans and spans[-1] == span.model_copy(update={"first_batch": spans[-1].first_batch}):
            is_unchanged = len(spans) == 1 and spans[0].first_batch == 1
            return (new or self).model_copy(update={"spans": () if is_unchanged else tuple(spans)})
        return (new or self).model_copy(update={"spans": (*spans, span)})


class StepCounters(_Entry):
    """Collected steps of one attempt: `collected == written + dropped + failed + pending`."""

    collected: Count = 0
    written: Count = Field(default=0, description="Every writer wrote every row of the step.")
    dropped: Count = Field(default=0, description="The channel was full or closed, or measuring failed.")
    failed: Count = Field(default=0, description="A rule or a writer refused a row of the step, or fsync failed.")
    pending: Count = 0


class SnapshotCounters(_Entry):
    """Weight snapshots of one attempt: `written - removed - set_aside`, over all attempts, are in the folder."""

    written: Count = 0
    removed: Count = Field(
        default=0, description="Older snapshots, of any attempt, removed because there were more than allowed."
    )
    set_aside: Count = Field(
        default=0, description="Snapshots of earlier attempts that are no longer in the folder: superseded or lost."
    )
    failed: Count = Field(default=0, description="Snapshots that could not be written; events.csv says why.")


class Attempt(_Entry):
    """One process that wrote into the run, from its first step to its end."""

    number: Annotated[int, Field(ge=1)]
    status: Status = "running"
    error: str | None = Field(default=None, description="Type of the exception that ended it.")
    started_utc: AwareDatetime
    ended_utc: AwareDatetime | None = None
    resumed_from: Count = Field(default=0, description="Rows up to this batch belong to earlier attempts.")
    collect_every_n: Annotated[int, Field(ge=1)]
    deferred: Count = Field(
        default=0, description="Steps collected later than due, because of accumulation or the user's own count."
    )
    counters: StepCounters = Field(default_factory=StepCounters)
    rows: dict[str, Count] = Field(default_factory=dict, description="Rows written to each file, by file name.")
    set_aside: dict[str, Count] = Field(
        default_factory=dict,
        description="Rows of earlier attempts that are no longer in the file, by file name: superseded or lost.",
    )
    weight_snapshots: SnapshotCounters = Field(default_factory=SnapshotCounters)
    columns: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="The run's columns that this attempt measured, by table."
    )
    first_batches: dict[str, Count] = Field(
        default_factory=dict, description="Of tables that were added while the attempt ran, the batch of the first row."
    )
    logs_metrics: bool = Field(default=False, description="Whether it wrote rows of metrics.csv with log_metrics().")
    thresholds: dict[str, int | float | bool | None] = Field(
        default_factory=dict, description="Thresholds of signs that differ from their defaults."
    )
    argv: tuple[str, ...] = ()
    pid: Count = 0
    host: str = ""
    git_commit: str | None = None
    device: str | None = None
    weight_reference_bytes: Count = Field(
        default=0, description="Size of the copy, on the weights' device, that weight_deltas compares the weights with."
    )
    versions: dict[str, str] = Field(default_factory=dict)


class TableEntry(_Entry):
    """One table and the formats it is written in."""

    declaration: RunTable
    formats: tuple[Literal["csv", "parquet"], ...]


class Manifest(_Entry):
    """The content of telemetry/manifest.json."""

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Status = "running"
    heartbeat_utc: AwareDatetime
    tables: dict[str, TableEntry]
    groups: dict[str, Group] = Field(default_factory=dict)
    rate_names: dict[str, str] = Field(
        default_factory=dict, description="Of columns of learning_rates, the names of the optimizer's groups."
    )
    holdout_ids: tuple[tuple[int | str, ...], ...] = Field(
        default=(), description="Of each sample of holdout_predictions its ids, one or the two of a pair, in row order."
    )
    run_info: dict[str, JsonValue] = Field(default_factory=dict)
    attempts: list[Attempt] = Field(default_factory=list)

    @field_validator("tables")
    @classmethod
    def _is_named_alike(cls, tables: dict[str, TableEntry]) -> dict[str, TableEntry]:
        for name, entry in tables.items():
            if entry.declaration.table.name != name:
                raise ValueError(f"table {name!r} declares itself as {entry.declaration.table.name!r}")
        return tables

    @property
    def is_of_train(self) -> bool:
        """Whether `ava-pipeline train` wrote the run, and not a training loop of the user's own."""
        return self.run_info.get("job") == TRAIN_JOB

    @property
    def attempt(self) -> Attempt:
        """The latest attempt; raise DamagedFileError if there is none, which telemetry never writes."""
        if not self.attempts:
            raise DamagedFileError("telemetry/manifest.json lists no attempt. Restore it from a backup.")
        return self.attempts[-1]


def _span(group: Group, first_batch: int) -> GroupSpan:
    fields = group.model_dump(include={"parent", "parameters", "trainable", "learning_rates"})
    return GroupSpan(first_batch=first_batch, **fields)


class GroupState(NamedTuple):
    """The groups as they were from one batch on, until the next state."""

    first_batch: int
    groups: dict[str, Group]


def group_states(groups: Mapping[str, Group]) -> list[GroupState]:
    """Every state of the groups during a run, in order; the first begins at batch 1."""
    begins = sorted({1, *(span.first_batch for group in groups.values() for span in group.spans)})
    states = ((begin, {name: group.at(begin) for name, group in groups.items()}) for begin in begins)
    return [GroupState(begin, {name: one for name, one in state.items() if one is not None}) for begin, state in states]


def changed_groups(older: Mapping[str, Group], new: Mapping[str, Group], first_batch: int) -> dict[str, Group]:
    """The groups of a run that are others from `first_batch` on: all that it ever had, with their spans."""
    changed = {name: group.changed(new.get(name), first_batch) for name, group in older.items()}
    added = {name: group for name, group in new.items() if name not in older}
    begins = {name: group.model_copy(update={"spans": (_span(group, first_batch),)}) for name, group in added.items()}
    return changed | (begins if first_batch > 1 else added)


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest at `path`; if that raises OSError, the older manifest is unchanged."""
    with written_aside(path) as file:
        file.write(manifest.model_dump_json(indent=1).encode() + b"\n")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raise DamagedFileError if it is not one of schema version 1."""
    try:
        return Manifest.model_validate_json(read_small_file(path, MAX_MANIFEST_BYTES))
    except ValidationError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: ValidationError) -> DamagedFileError:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the file"
    is_newer = place == "schema_version" and isinstance(first["input"], int) and first["input"] > SCHEMA_VERSION
    remedy = "Upgrade ava-pipeline, which wrote it in a newer version" if is_newer else "Restore it from a backup"
    return DamagedFileError(
        f"{path} is not a manifest of schema version {SCHEMA_VERSION}: {place}: {first['msg']}. "
        f"{remedy}; the tables beside it can be read with pandas as they are."
    )


def status_now(manifest: Manifest, now: datetime) -> Status:
    """The run's status; `killed` if the manifest says `running` and the process is gone.

    A process on this host is looked up by its number. For a process on another host, or one whose number another
    process may have by now, the heartbeat decides, which may be two minutes old.
    """
    if manifest.status != "running":
        return manifest.status
    is_gone = bool(manifest.attempts) and _is_gone(manifest.attempt)
    return "killed" if is_gone or now - manifest.heartbeat_utc > KILLED_AFTER else "running"


def _is_gone(attempt: Attempt) -> bool:
    """Whether no process on this host has the attempt's number."""
    if not attempt.pid or attempt.host != platform.node():
        return False
    with suppress(PermissionError):  # a process of another user: it exists
        try:
            os.kill(attempt.pid, 0)
        except ProcessLookupError:
            return True
    return False


def parameters_by_group(groups: Mapping[str, Group]) -> dict[str, frozenset[str]]:
    """The parameter names of each group."""
    return {name: frozenset(group.parameters) for name, group in groups.items()}


def partitions(groups: Mapping[str, Group]) -> dict[str, tuple[str, ...]]:
    """Parent -> children of the groups whose children partition them, so that `parent² = Σ child²` holds for norms.

    Each parameter of such a parent is in one child, and only in one.
    """
    parameters = parameters_by_group(groups)
    partitioned = {}
    for parent in groups:
        children = tuple(name for name, group in groups.items() if group.parent == parent)
        of_children = [name for child in children for name in groups[child].parameters]
        if children and len(of_children) == len(set(of_children)) and set(of_children) == parameters[parent]:
            partitioned[parent] = children
    return partitioned


class AttemptSpan(NamedTuple):
    """The batches whose rows an attempt left in the main tables: those after `begin`, up to and including `end`."""

    attempt: Attempt
    begin: int
    end: float


def attempt_spans(manifest: Manifest) -> list[AttemptSpan]:
    """The span of each attempt that has one, the latest attempt first: it ends where a later attempt resumed."""
    spans: list[AttemptSpan] = []
    end = float("inf")
    for attempt in reversed(manifest.attempts):
        if attempt.resumed_from < end:
            spans.append(AttemptSpan(attempt, attempt.resumed_from, end))
            end = attempt.resumed_from
    return spans
