"""AVA.txt -> DataFrame: votes, tags and challenge of every image, or an error that names every bad line.

The file is parsed in one of two ways. Parsing line by line is the specification: it defines a valid row and what is
wrong with an invalid one. Vectorised parsing returns the same rows about ten times faster for valid files, and gives up
otherwise.
"""

import logging
import re
from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from ava_pipeline.contract.arrays import Integers
from ava_pipeline.errors import ConfigError, LabelsError

_log = logging.getLogger("ava_pipeline")

VOTE_COLUMNS = tuple(f"votes_{score}" for score in range(1, 11))
COLUMNS = ("index", "image_id", *VOTE_COLUMNS, "tag_1", "tag_2", "challenge")
_VOTES = slice(2, 12)
_NUM_TAGS = 66
# No image has a billion votes; below that, weighted sums of ten counts are exact in int64 and in float64.
_MAX_COUNT = 10**9
_MAX_SHOWN = 20
_INT64 = np.iinfo(np.int64)
_RANGES = (
    dict.fromkeys(COLUMNS, (int(_INT64.min), int(_INT64.max)))
    | dict.fromkeys(VOTE_COLUMNS, (0, _MAX_COUNT))
    | {"image_id": (0, int(_INT64.max))}
)
# int() takes quadratic time and refuses more than 4300 digits. 19 would be too few because of leading zeros.
_MAX_DIGITS = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_TO_SPACE = bytes.maketrans(b"\t\v\f", b"   ")


def read_ava_labels(path: str | Path) -> pd.DataFrame:
    """Read labels in AVA's format, strictly.

    A row is 15 integers separated by whitespace: running index, image id, the counts of votes for 1 to 10, two tags (0
    is none), challenge. A byte-order mark, CRLF, blank lines and a missing last newline are accepted. Rows that repeat
    an image with the same votes are dropped with a warning, even if their tags differ; unknown tags only cause a
    warning.

    Args:
        path: The file, usually AVA.txt.

    Returns:
        One row per image in the file's order: `image_id`, `votes_1` ... `votes_10`, `tag_1`, `tag_2`, `challenge`, all
        int64, and `gt_mean`, float64: sum(score * votes) / sum(votes), from the integer counts.

    Raises:
        ConfigError: The file is missing or cannot be read.
        LabelsError: Rows are not 15 integers, hold negative counts or no votes, or give one image different votes.
    """
    path = Path(path)
    data = _read_bytes(path)
    rows = _parse_vectorised(data)
    if rows is None:
        rows = _parse_line_by_line(path, data)
    rows = rows[_first_rows(path, data, rows)]
    _warn_of_unknown_tags(path, rows)
    return _frame(rows)


def _read_bytes(path: Path) -> bytes:
    """Return the file's bytes without a byte-order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"Labels file {path} cannot be read: {error.strerror}. Give the path of AVA's own AVA.txt, or of a file "
            f"with the same {len(COLUMNS)} columns."
        ) from error
    if b"\0" in data:
        raise LabelsError(
            f"{path}: expected a text file, got NUL bytes. Give AVA.txt itself, saved as plain UTF-8 text."
        )
    text = data.removeprefix(_BYTE_ORDER_MARK)
    if text.startswith(_BYTE_ORDER_MARK):
        raise LabelsError(f"{path}: begins with more than one byte-order mark. Save it as UTF-8 text without any.")
    return text


def _parse_vectorised(data: bytes) -> Integers | None:
    """Return the rows, int64[N, 15], or None if anything is unusual."""
    text = data.translate(_TO_SPACE)
    if text.translate(None, b"0123456789- \r\n") or not text.strip():
        return None
    try:
        rows = pd.read_csv(BytesIO(text), sep=r"\s+", header=None, dtype=np.int64).to_numpy()
    except (ValueError, OverflowError):  # pandas does not report the line; parsing line by line does
        return None
    return rows if rows.shape[1] == len(COLUMNS) and _plausible(rows) else None


def _plausible(rows: Integers) -> bool:
    """Whether every row, int64[N, 15], is one that `_reason` accepts."""
    votes = rows[:, _VOTES]
    return bool(rows[:, 1].min() >= 0 and votes.min() >= 0 and votes.max() <= _MAX_COUNT and votes.any(axis=1).all())


def _parse_line_by_line(path: Path, data: bytes) -> Integers:
    """Return the rows, int64[N, 15], or raise a LabelsError that lists every invalid line."""
    numbered = [(number, line.split()) for number, line in _numbered_lines(data)]
    reasons = ((number, _reason(words)) for number, words in numbered)
    bad = [f"line {number}: {reason}" for number, reason in reasons if reason]
    if bad:
        raise LabelsError(
            f"{path}: {len(bad)} of {len(numbered)} lines are not labels.\n{_listing(bad)}\nA row is {len(COLUMNS)} "
            "integers: index, image id, 10 vote counts, 2 tags, challenge. Correct or delete these lines, or give the "
            "original AVA.txt."
        )
    if not numbered:
        raise LabelsError(
            f"{path} contains no rows. Give the original AVA.txt, with one line of {len(COLUMNS)} integers per image."
        )
    return np.array([[int(word) for word in words] for _, words in numbered], dtype=np.int64)


def _numbered_lines(data: bytes) -> list[tuple[int, str]]:
    """Return the 1-based number and the text of each line that is not blank."""
    lines = enumerate((line.decode("utf-8", "replace") for line in data.splitlines()), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _reason(words: Sequence[str]) -> str | None:
    """Say why these words are not a row of labels; None if they are one."""
    if len(words) != len(COLUMNS):
        return f"{len(words)} values instead of {len(COLUMNS)}"
    for name, word in zip(COLUMNS, words, strict=True):
        least, most = _RANGES[name]
        if not _INTEGER.fullmatch(word):
            return f"{name}: expected an integer, got {_shown(word)}"
        if len(word) > _MAX_DIGITS or not least <= int(word) <= most:
            return f"{name}: expected {least} to {most}, got {_shown(word)}"
    return None if any(int(word) for word in words[_VOTES]) else "no votes at all"


def _shown(word: str) -> str:
    return repr(word if len(word) <= _MAX_SHOWN else f"{word[:_MAX_SHOWN]}...")


def _first_rows(path: Path, data: bytes, rows: Integers) -> Integers:
    """Return the positions of each image's first row; warn of repeats, and raise if their votes differ."""
    ids = pd.Series(rows[:, 1])
    if not ids.duplicated().any():
        return np.arange(len(rows))
    codes, _ = pd.factorize(ids)
    first = np.unique(codes, return_index=True)[1]
    repeats = np.setdiff1d(np.arange(len(rows)), first)
    _warn_of_repeats(path, data, rows, np.c_[first[codes[repeats]], repeats])
    return first


def _warn_of_repeats(path: Path, data: bytes, rows: Integers, pairs: Integers) -> None:
    """Warn of repeated images; raise if the votes of a pair of rows, int64[P, 2] positions, differ."""
    numbers = np.array([number for number, _ in _numbered_lines(data)])
    differ = (rows[pairs[:, 0], _VOTES] != rows[pairs[:, 1], _VOTES]).any(axis=1)
    shown = pairs[differ if differ.any() else ...]
    repeats = [f"lines {numbers[a]} and {numbers[b]}: image {rows[a, 1]}" for a, b in shown]
    if differ.any():
        raise LabelsError(
            f"{path}: different votes for the same image.\n{_listing(repeats)}\nThe file does not say which row is "
            "right: delete the wrong one of each pair."
        )
    others = (rows[pairs[:, 0], 12:] != rows[pairs[:, 1], 12:]).any(axis=1).sum()
    _log.warning(
        "%s: dropped %d rows that repeat an image with the same votes%s.\n%s",
        path,
        len(repeats),
        f"; {others} of them have other tags or another challenge, of which the first row's are kept" if others else "",
        _listing(repeats),
    )


def _warn_of_unknown_tags(path: Path, rows: Integers) -> None:
    """Warn once if tags are outside AVA's range of 0 (none) to 66."""
    tags = rows[:, 12:14]
    unknown = (tags < 0) | (tags > _NUM_TAGS)
    if unknown.any():
        shown = ", ".join(str(tag) for tag in np.unique(tags[unknown])[:_MAX_SHOWN])
        _log.warning(
            "%s: %d rows have tags that AVA does not have (0 to %d): %s. Tags are kept unchanged; training does not "
            "use them.",
            path,
            unknown.any(axis=1).sum(),
            _NUM_TAGS,
            shown,
        )


def _frame(rows: Integers) -> pd.DataFrame:
    """Return the public frame of rows, int64[N, 15]."""
    frame = pd.DataFrame(rows[:, 1:], columns=list(COLUMNS[1:]))
    votes = rows[:, _VOTES]
    frame["gt_mean"] = (votes @ np.arange(1, 11)) / votes.sum(axis=1)
    return frame


def _listing(items: Sequence[str]) -> str:
    """Return the first items, one per line, and the number of the others."""
    rest = len(items) - _MAX_SHOWN
    return "\n".join(
        [*(f"  {item}" for item in islice(items, _MAX_SHOWN)), *([f"  and {rest} more"] if rest > 0 else [])]
    )
