"""Which runs are listed, and in which order: `lr>1e-3 and status=finished`, `srcc`.

A condition is read, never run: names, signs and values are told apart here, and nothing is evaluated as code.
"""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ava_pipeline.errors import MisuseError
from ava_pipeline.many_runs.summary import Summary, Value, last_part
from ava_pipeline.metrics import HIGHER_IS_BETTER

_CLAUSE = re.compile(
    r"\s*(?P<name>[^\s,<>=!'\"]+)\s*(?P<sign><=|>=|==|!=|=|<|>)\s*(?P<value>'[^']*'|\"[^\"]*\"|[^\s,<>=!'\"]+)\s*"
)
_JOIN = re.compile(r",|and\b", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WORDS: Mapping[str, Value] = {"true": True, "false": False}
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SHORT = {"lr": "base_lr"}
_NUM_NAMED = 5


class Clause(NamedTuple):
    """One comparison of a condition."""

    name: str
    sign: str
    value: Value


def parse_where(text: str) -> list[Clause]:
    """Read comparisons joined by `and` or a comma; all of them must hold.

    Raises:
        MisuseError: it is none; the message says from where on.
    """
    clauses, position = [], 0
    while True:
        match = _CLAUSE.match(text, position)
        if match is None:
            raise _refusal(text, position)
        clauses.append(_clause(match, text))
        position = match.end()
        if position == len(text):
            return clauses
        join = _JOIN.match(text, position)
        if join is None:
            raise _refusal(text, position)
        position = join.end()


def where(summaries: Sequence[Summary], text: str) -> list[Summary]:
    """The runs for which a condition holds, and those that could not be read, of which nobody knows.

    A run that has no value of a name does not fulfil any comparison with it.

    Raises:
        MisuseError: it is no condition, or no run has a name in it.
    """
    known = _names(summaries)
    clauses = [clause._replace(name=_resolved(clause.name, known)) for clause in parse_where(text)]
    return [one for one in summaries if one.problem or all(_holds(clause, one.values()) for clause in clauses)]


def ordered(summaries: Sequence[Summary], text: str) -> list[Summary]:
    """Runs by a metric, the best first, or by anything else, the least first; runs without it come last.

    Args:
        summaries: in any order.
        text: the name; with a `-` before it, the other way round.

    Raises:
        MisuseError: no run has such a name.
    """
    name = _resolved(text.removeprefix("-"), _names(summaries))
    having = [one for one in summaries if name in one.values()]
    having.sort(key=lambda one: _place(one.values()[name]), reverse=(name in HIGHER_IS_BETTER) != text.startswith("-"))
    return having + [one for one in summaries if name not in one.values()]


def _clause(match: re.Match[str], text: str) -> Clause:
    name, sign, word = match["name"], match["sign"], match["value"]
    value = _value(word)
    if sign in _ORDERS and not _is_number(value):
        raise MisuseError(f"{text!r}: {sign} compares numbers, and {word} is none; = and != compare words.")
    return Clause(name, sign, value)


def _value(word: str) -> Value:
    if word[0] in "'\"":
        return word[1:-1]
    return float(word) if _NUMBER.fullmatch(word) else _WORDS.get(word, word)


def _holds(clause: Clause, values: Mapping[str, Value]) -> bool:
    if clause.name not in values:
        return False
    value = values[clause.name]
    if clause.sign in _ORDERS:
        return _is_number(value) and _ORDERS[clause.sign](value, clause.value)
    return _is_same(value, clause.value) == (clause.sign != "!=")


def _is_same(value: Value, given: Value) -> bool:
    """Numbers by their value, all else by its text: `1` is no `true`."""
    if _is_number(value) and _is_number(given):
        return value == given
    return type(value) is type(given) and value == given


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(value: Value) -> tuple[bool, Any]:
    """Numbers before texts, which cannot be compared with them; nan, which has no place, among the texts."""
    is_text = not isinstance(value, int | float) or value != value  # noqa: PLR0124  # nan
    return is_text, str(value) if is_text else value


def _names(summaries: Iterable[Summary]) -> list[str]:
    return list(dict.fromkeys(name for one in summaries for name in one.values()))


def _resolved(name: str, known: Sequence[str]) -> str:
    """The name itself, or the one whose last part it is: `base_lr`, or `lr` for short, means `optim.base_lr`."""
    for found in _candidates(name, known):
        if len(found) == 1:
            return found[0]
        if found:
            raise MisuseError(f"{name!r} may be {', '.join(found)}; give one of them.")
    near = difflib.get_close_matches(name, [*known, *map(last_part, known)], n=_NUM_NAMED, cutoff=0.5)
    told = ", ".join(near or known[:_NUM_NAMED]) or "none, since no run can be read"
    raise MisuseError(f"No run has {name!r}. Names that are there: {told}; --json shows all.")


def _candidates(name: str, known: Sequence[str]) -> Iterator[list[str]]:
    yield [one for one in known if one == name]
    yield [one for one in known if last_part(one) == name]
    yield [one for one in known if last_part(one) == _SHORT.get(name)]


def _refusal(text: str, position: int) -> MisuseError:
    rest = text[position:].strip() or "its end"
    return MisuseError(
        f"{text!r} cannot be read from {rest!r} on; write comparisons such as lr>1e-3 or status=finished, joined by "
        "and or a comma, and texts with spaces in quotes. There is no or."
    )
