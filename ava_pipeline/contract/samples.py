"""What a batch consisted of, named in an event's message, and found there again."""

import re
from collections.abc import Sequence

MAX_TOLD_SAMPLES = 20

_TOLD = re.compile(
    r"Samples of batch \d+: (?P<ids>.*?)(?: and \d+ more)?\.(?: And \d+ more of this kind, up to batch \d+\.)?$"
)


def name_samples(message: str, batch_idx: int, ids: Sequence[object]) -> str:
    """A message that also names the first 20 samples of a batch."""
    more = f" and {len(ids) - MAX_TOLD_SAMPLES} more" if len(ids) > MAX_TOLD_SAMPLES else ""
    return f"{message} Samples of batch {batch_idx}: {', '.join(map(str, ids[:MAX_TOLD_SAMPLES]))}{more}."


def samples_in(message: str) -> tuple[str, ...]:
    """The samples that a message names; none where it names none."""
    found = _TOLD.search(message)
    return tuple(found["ids"].split(", ")) if found else ()
