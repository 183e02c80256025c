"""MLflow: a run's numbers as metrics, and its events as one text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ava_pipeline.errors import require_extra
from ava_pipeline.integrations.points import Note, Point
from ava_pipeline.integrations.tracker import Tracker

require_extra("Export to MLflow", "trackers", "mlflow")

from mlflow.entities import Metric, RunTag  # noqa: E402  # after the check that it is there

MAX_METRICS_PER_CALL = 1000
MAX_TAGS_PER_CALL = 100
MAX_NAME_LENGTH = 250
MAX_TAG_LENGTH = 5000
EVENTS_FILE = "telemetry_events.txt"
_MS_PER_S = 1000


class MlflowTracker(Tracker):
    """Logs into a run of MLflow, through its client.

    Characters of names that MLflow refuses become `_`, and texts that are too long for it are cut.

    Args:
        client: an `mlflow.MlflowClient`.
        run_id: the run, which exists.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._texts: list[str] = []

    def tag(self, facts: Mapping[str, object]) -> None:
        """Add facts of the run as tags, as many in a call as MLflow takes."""
        tags = [RunTag(_name(name), str(value)[:MAX_TAG_LENGTH]) for name, value in facts.items()]
        for start in range(0, len(tags), MAX_TAGS_PER_CALL):
            self._client.log_batch(self._run_id, tags=tags[start : start + MAX_TAGS_PER_CALL])

    def start(self, *, is_resumed: bool) -> None:
        """Do nothing: MLflow cannot take back metrics."""

    def log(self, points: Sequence[Point]) -> None:
        """Log every number, as many in a call as MLflow takes."""
        metrics = [
            Metric(_name(name), value, int(time_s * _MS_PER_S), step)
            for step, time_s, values in points
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), MAX_METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + MAX_METRICS_PER_CALL])

    def note(self, notes: Sequence[Note]) -> None:
        """Keep the events for the end, because MLflow replaces a text as a whole."""
        self._texts += [f"step {step}: {severity}: {message} [{event}]" for step, _, event, severity, message in notes]

    def finish(self) -> None:
        """Store the events."""
        if self._texts:
            self._client.log_text(self._run_id, "\n".join(self._texts) + "\n", EVENTS_FILE)


def _name(text: str) -> str:
    """A name as MLflow takes it: it may be used as a path, so no part of it is empty or begins with a dot."""
    parts = (re.sub(r"[^\w.\- ]", "_", part).lstrip(".") or "_" for part in text.split("/"))
    return "/".join(parts)[:MAX_NAME_LENGTH].rstrip("/")
