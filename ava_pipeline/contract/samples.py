"""What a batch consisted of, named in an event's message, and found there again."""

import json
import re
from collections.abc import Sequence

MAX_TOLD_SAMPLES = 20

_TOLD = re.compile(
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
    return f"{message} Samples of batch {batch_idx}: {', '.join(map(_told, ids[:MAX_TOLD_SAMPLES]))}{more}."


def samples_in(message: str) -> tuple[str, ...]:
    """The samples that a message names; none where it names none."""
    found = _TOLD.search(message)
    if not found:
        return ()
    if not _IDS.fullmatch(found["ids"]):
        return tuple(found["ids"].split(", "))  # as they were told before they were quoted
    return tuple(json.loads(one) if one.startswith('"') else one for one in re.findall(_ONE, found["ids"]))


def _told(one: object) -> str:
    text = str(one)
    if _PLAIN.fullmatch(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _FRAGILE.sub(lambda space: f"\\u{ord(space[0]):04x}", quoted)
