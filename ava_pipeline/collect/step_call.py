"""One call of `TelemetryCollector.step` that collects a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ava_pipeline.collect.measure import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """What the user said, and where the count stands.

    Attributes:
        batch_idx: 1-based, of the run.
        epoch: 0-based.
        values: scalars to record beside.
        sample_ids: what the batch consisted of.
        is_deferred: later than due.
        resumed_from: last batch of the checkpoint; 0 for a fresh start.
        num_calls: calls so far that did not only accumulate, this one included; None where the user's count has holes.
    """

    batch_idx: int
    epoch: int
    values: Mapping[str, Value]
    sample_ids: Sequence[object] | None
    is_deferred: bool
    resumed_from: int
    num_calls: int | None
