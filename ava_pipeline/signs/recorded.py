"""What the collector recorded as an event because the rows cannot show it: numbers that are not what they seem."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ava_pipeline.contract.events import EventName
from ava_pipeline.contract.finding import Finding

_RECORDED: frozenset[EventName] = frozenset({"misuse", "optimizer_replaced"})


def recorded_findings(events: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """A finding for each such event; its message ends with what to do."""
    for event in events:
        if event["event"] in _RECORDED and event["severity"] != "info":
            yield Finding(
                id=event["event"].replace("_", "-"),
                severity="warning",
                message=event["message"],
                batch_idx=event["batch_idx"],
                batch_idx_end=event["batch_idx_end"],
                epoch=event["epoch"],
                column=event["column"],
                value=event["value"],
            )
