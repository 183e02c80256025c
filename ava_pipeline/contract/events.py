"""events.csv: what happened to a run besides its rows, under a closed set of names."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.finding import Severity
from ava_pipeline.contract.tables import Table

EventName = Literal[
    "non_finite",  # nan or inf was measured
    "gap",  # collected steps that never reached the files
    "failed_row",  # a row that broke a rule of its table
    "failed_write",  # rows that could not be written to a file
    "failed_sync",  # rows that were written and could not be synced to the disk
    "damaged_file",  # bytes of an older file that could not be read
    "changed_columns",  # a resumed run whose columns differ from those of its older rows
    "changed_holdout",  # a resumed run whose held-out samples are others than before
    "left_out",  # gradients that one process cannot measure without waiting
    "unknown_scale",  # gradients under a loss scale that could not be read
    "skipped_step",  # optimizer steps that the GradScaler skipped, because gradients were not finite
    "misuse",  # the collector was called in a way that cannot be right
    "optimizer_replaced",  # parameters change, but not by the optimizer that the collector was given
    "failed_predictions",  # an epoch's predictions that were not written
    "failed_metrics",  # a row of metrics.csv that was not written
    "failed_snapshot",  # a weight snapshot that was not written, or not in full
    "skipped_snapshot",  # a weight snapshot that was due while an earlier one was still being written
    # Warning signs found while training; with severity info, a sign that is gone. docs/diagnosis.md explains each.
    "backbone_not_learning",
    "clipped_before_step",
    "clipping_often",
    "dead_layer",
    "exploding",
    "head_dominating",
    "label_bias",
    "labels_alike",
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
    "update_ratio",
    "vanishing",
    "weights_not_moving",
]
# Events that explain why batches have no rows.
EXPLAIN_MISSING_ROWS: frozenset[EventName] = frozenset({"gap", "failed_row", "failed_write", "damaged_file"})

_FORMULA_STARTS = ("=", "+", "-", "@")

EVENTS = Table(
    name="events",
    description="What happened to the run besides its rows. Always CSV, whatever the formats of the tables.",
    columns=(
        Column(name="batch_idx", dtype="int64", description="First batch concerned.", not_below=0),
        Column(name="batch_idx_end", dtype="int64", description="Last batch concerned.", not_below=0),
        Column(name="epoch", dtype="int64", description="0-based epoch of the first batch.", not_below=0),
        Column(name="time_utc", dtype="timestamp", description="When it was noticed, in UTC."),
        Column(name="event", dtype="string", description="What happened.", one_of=get_args(EventName)),
        Column(name="severity", dtype="string", description="How serious it is.", one_of=get_args(Severity)),
        Column(name="column", dtype="string", description="Column, table or file concerned, if any.", nullable=True),
        Column(name="value", dtype="float64", description="A number such as the steps lost, if any.", nullable=True),
        Column(name="message", dtype="string", description="What happened, for a person to read."),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of `events.csv`, about the batches from `batch_idx`, 0 before the first, to `batch_idx_end`.

    Example:
        >>> Event(event="gap", severity="warning", message="Lost.", batch_idx=10, batch_idx_end=20, epoch=0).event
        'gap'
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


def event_columns(events: Sequence[Event]) -> dict[str, list[Any]]:
    """The columns of `EVENTS`: texts on one line, and none that a spreadsheet would run as a formula."""
    columns = {column.name: [getattr(event, column.name) for event in events] for column in EVENTS.columns}
    harmless = {name: [text and _harmless(text) for text in columns[name]] for name in ("column", "message")}
    return columns | harmless


def _harmless(text: str) -> str:
    """On one line, in UTF-8, and after an apostrophe if a spreadsheet would run the text as a formula.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    line = " ".join(as_utf8(text).split())
    return f"'{line}" if line.startswith(_FORMULA_STARTS) else line


def as_utf8(text: str) -> str:
    r"""The text with what is not UTF-8 escaped: Python reads a byte that it cannot decode as `\udce9`, for instance."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


MAX_NAMED_SAMPLES = 20

_SAMPLES_SENTENCE = re.compile(
    r"Samples of batch \d+: (?P<ids>.*?)(?: and \d+ more)?\.(?: And \d+ more of this kind, up to batch \d+\.)?$"
)
_WORD = re.compile(r"[^\s\",]+")
_ID = rf'{_WORD.pattern}|"(?:[^"\\]|\\.)*"'
_IDS = re.compile(rf"(?:{_ID})(?:, (?:{_ID}))*")
_LOST_SPACE = re.compile(r"[^\S ]|(?<= ) ")  # white space that a message on one line does not keep


def name_samples(message: str, batch_idx: int, ids: Sequence[object]) -> str:
    """Append the first 20 sample ids of a batch to a message; an id of several words is written as JSON text.

    Example:
        >>> name_samples("The loss spiked.", 5, ["a.jpg", "b 1.jpg"])
        'The loss spiked. Samples of batch 5: a.jpg, "b 1.jpg".'
    """
    more = f" and {len(ids) - MAX_NAMED_SAMPLES} more" if len(ids) > MAX_NAMED_SAMPLES else ""
    return f"{message} Samples of batch {batch_idx}: {', '.join(map(_id_text, ids[:MAX_NAMED_SAMPLES]))}{more}."


def _id_text(sample_id: object) -> str:
    text = str(sample_id)
    if _WORD.fullmatch(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _LOST_SPACE.sub(lambda space: f"\\u{ord(space[0]):04x}", quoted)


def samples_in(message: str) -> tuple[str, ...]:
    """The sample ids that `name_samples` appended to a message; empty if it names none."""
    found = _SAMPLES_SENTENCE.search(message)
    if not found:
        return ()
    if not _IDS.fullmatch(found["ids"]):
        return tuple(found["ids"].split(", "))  # older versions did not quote them
    return tuple(json.loads(text) if text.startswith('"') else text for text in re.findall(_ID, found["ids"]))
