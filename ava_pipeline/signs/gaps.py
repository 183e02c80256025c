"""Collected steps that never reached the files."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ava_pipeline.signs.finding import Finding

SIGN = "telemetry-gap"
EVENTS = ("gap", "failed_row", "failed_write", "damaged_file")
_ADVICE = (
    "Look at the disk. Where it is merely slower than training, raise collect_every_n or max_pending_rows, or wait for "
    "room with on_full: block."
)


def gap_findings(events: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """A finding an event that says which steps are missing.

    Args:
        events: rows of `events.csv`.
    """
    for event in events:
        if event["event"] in EVENTS:
            yield Finding(
                sign=SIGN,
                severity="warning",
                column=event["column"],
                batch_idx=event["batch_idx"],
                batch_idx_end=event["batch_idx_end"],
                epoch=event["epoch"],
                value=event["value"],
                message=f"rows are missing: {event['message']}",
                advice=_ADVICE,
            )
