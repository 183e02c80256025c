"""Which attempt the rows of a run are of."""

from typing import NamedTuple

from ava_pipeline.contract.manifest import Attempt, Manifest


class Stretch(NamedTuple):
    """The batches whose rows an attempt left in the main tables: behind `begin`, up to `end`."""

    attempt: Attempt
    begin: int
    end: float


def stretches(manifest: Manifest) -> list[Stretch]:
    """Each attempt goes up to where a later one resumed; the latest first."""
    found: list[Stretch] = []
    end = float("inf")
    for attempt in reversed(manifest.attempts):
        if attempt.resumed_from < end:
            found.append(Stretch(attempt, attempt.resumed_from, end))
            end = attempt.resumed_from
    return found
