"""Events: what happened to a run beside its rows, from a closed set of names."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.tables import Table
from ava_pipeline.contract.untrusted import storable

EventName = Literal[
    "non_finite",  # nan or inf was measured
    "gap",  # collected steps that never reached the files
    "failed_row",  # a row that broke a rule of its table
    "failed_write",  # rows that a file did not take
    "failed_sync",  # rows that a file took and the disk did not sync
    "damaged_file",  # bytes of an older file that could not be read
    "changed_columns",  # a resumed run whose columns are not those of its older rows
    "left_out",  # gradients that one process cannot measure without waiting
    "unknown_scale",  # gradients under a loss scale that could not be read
    "skipped_step",  # optimizer steps that the GradScaler left out, because gradients were not finite
    "misuse",  # the collector was called in a way that cannot be right
    "failed_predictions",  # an epoch's predictions that were not written
    # Warning signs, seen while training; severity info says that one is gone. docs/diagnosis.md explains each.
    "backbone_not_learning",
    "clipping_often",
    "dead_layer",
    "exploding",
    "head_dominating",
    "learning_rate_jump",
    "learning_rate_order",
    "learning_rate_zero",
    "loss_negative",
    "loss_rising",
    "loss_scale_collapse",
    "not_measured",
    "not_optimized",
    "rising",
    "spike",
    "vanishing",
]
Severity = Literal["info", "warning", "error"]

_BEGINS_FORMULA = ("=", "+", "-", "@")

EVENTS = Table(
    name="events",
    description="What happened to the run beside its rows. Written as CSV, whatever the formats.",
    columns=(
        Column(name="batch_idx", dtype="int64", description="First batch concerned.", not_below=0),
        Column(name="batch_idx_end", dtype="int64", description="Last batch concerned.", not_below=0),
        Column(name="epoch", dtype="int64", description="0-based epoch of the first batch.", not_below=0),
        Column(name="time_utc", dtype="timestamp", description="When it was noticed, UTC."),
        Column(name="event", dtype="string", description="What happened.", one_of=get_args(EventName)),
        Column(name="severity", dtype="string", description="How bad it is.", one_of=get_args(Severity)),
        Column(name="column", dtype="string", description="The column concerned, where it is one.", nullable=True),
        Column(name="value", dtype="float64", description="The figure that tells, where there is one.", nullable=True),
        Column(name="message", dtype="string", description="One sentence for a person."),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of `events.csv`.

    Attributes:
        batch_idx: first batch concerned, 1-based; 0 before the first.
        batch_idx_end: last batch concerned.
        epoch: 0-based epoch of the first batch.
        column: the column concerned, where it is one.
        value: the figure that tells, where there is one.
    """

    event: EventName
    severity: Severity
    message: str
    batch_idx: int
    batch_idx_end: int
    epoch: int
    column: str | None = None
    value: float | None = None
    time_utc: datetime = field(default_factory=lambda: datetime.now(UTC))

    def row(self) -> dict[str, object]:
        """The event as a row of its table, its message on one line, and no text that a spreadsheet would run."""
        row = {column.name: getattr(self, column.name) for column in EVENTS.columns}
        column = None if self.column is None else _harmless(self.column)
        return row | {"message": _harmless(self.message), "column": column}


def _harmless(text: str) -> str:
    """On one line, in UTF-8, and behind an apostrophe where a spreadsheet would take it for a formula.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    line = " ".join(storable(text).split())
    return f"'{line}" if line.startswith(_BEGINS_FORMULA) else line


MAX_TOLD_SAMPLES = 20

_SAMPLES_SENTENCE = re.compile(
    r"Samples of batch \d+: (?P<ids>.*?)(?: and \d+ more)?\.(?: And \d+ more of this kind, up to batch \d+\.)?$"
)
_PLAIN = re.compile(r"[^\s\",]+")
_ONE = rf'{_PLAIN.pattern}|"(?:[^"\\]|\\.)*"'
_IDS = re.compile(rf"(?:{_ONE})(?:, (?:{_ONE}))*")
# A message is put on one line, and its white space together.
_FRAGILE = re.compile(r"[^\S ]|(?<= ) ")


def name_samples(message: str, batch_idx: int, ids: Sequence[object]) -> str:
    """A message that also names the first 20 samples of a batch, as JSON texts where they are more than one word."""
    more = f" and {len(ids) - MAX_TOLD_SAMPLES} more" if len(ids) > MAX_TOLD_SAMPLES else ""
    return f"{message} Samples of batch {batch_idx}: {', '.join(map(_sample_text, ids[:MAX_TOLD_SAMPLES]))}{more}."


def samples_in(message: str) -> tuple[str, ...]:
    """The samples that a message names; none where it names none."""
    found = _SAMPLES_SENTENCE.search(message)
    if not found:
        return ()
    if not _IDS.fullmatch(found["ids"]):
        return tuple(found["ids"].split(", "))  # as they were told before they were quoted
    return tuple(json.loads(one) if one.startswith('"') else one for one in re.findall(_ONE, found["ids"]))


def _sample_text(one: object) -> str:
    text = str(one)
    if _PLAIN.fullmatch(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _FRAGILE.sub(lambda space: f"\\u{ord(space[0]):04x}", quoted)
