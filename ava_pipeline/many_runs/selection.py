"""Select and sort runs: `lr>1e-3 and status=finished`, `srcc`.

Conditions are parsed here into names, operators and values; nothing is evaluated as code.
"""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ava_pipeline.errors import MisuseError
from ava_pipeline.many_runs.summary import HOLDOUT_ACCURACY, Summary, Value, last_part
from ava_pipeline.metrics import HIGHER_IS_BETTER

_CLAUSE = re.compile(
    r"\s*(?P<name>[^\s,<>=!'\"]+)\s*(?P<operator><=|>=|==|!=|=|<|>)\s*(?P<value>'[^']*'|\"[^\"]*\"|[^\s,<>=!'\"]+)\s*"
)
_JOIN = re.compile(r",|and\b", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_CONSTANTS: Mapping[str, Value] = {"true": True, "false": False}
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ALIASES = {"lr": "base_lr"}
_NUM_SUGGESTED = 5


class Clause(NamedTuple):
    """One comparison of a condition."""

    name: str
    operator: str
    value: Value


def parse_where(text: str) -> list[Clause]:
    """Parse comparisons joined by `and` or a comma. Raise MisuseError that names the part that cannot be read."""
    clauses, position = [], 0
    while True:
        match = _CLAUSE.match(text, position)
        if match is None:
            raise _syntax_error(text, position)
        clauses.append(_clause(match, text))
        position = match.end()
        if position == len(text):
            return clauses
        join = _JOIN.match(text, position)
        if join is None:
            raise _syntax_error(text, position)
        position = join.end()


def where(summaries: Sequence[Summary], text: str) -> list[Summary]:
    """The runs for which a condition holds, and the runs that cannot be read, for which it is unknown.

    A comparison does not hold for a run that lacks a value of that name. Raise MisuseError if the text is not a
    condition, or if no run has a value of a name in it.
    """
    known = _names(summaries)
    clauses = [clause._replace(name=_full_name(clause.name, known)) for clause in parse_where(text)]
    return [run for run in summaries if run.problem or all(_holds(clause, run.values()) for clause in clauses)]


def ordered(summaries: Sequence[Summary], text: str) -> list[Summary]:
    """Sort runs by a metric, best first, or by another value, least first; runs without the value come last.

    A `-` before the name reverses the order. Raise MisuseError if no run has a value of this name.
    """
    name = _full_name(text.removeprefix("-"), _names(summaries))
    with_value = [run for run in summaries if name in run.values()]
    is_descending = (name in HIGHER_IS_BETTER | {HOLDOUT_ACCURACY}) != text.startswith("-")
    with_value.sort(key=lambda run: _sort_key(run.values()[name]), reverse=is_descending)
    return with_value + [run for run in summaries if name not in run.values()]


def _clause(match: re.Match[str], text: str) -> Clause:
    name, symbol, word = match["name"], match["operator"], match["value"]
    value = _value(word)
    if symbol in _COMPARISONS and not _is_number(value):
        raise MisuseError(f"{text!r}: {symbol} expects a number, got {word}; use = or != to compare texts.")
    return Clause(name, symbol, value)


def _value(word: str) -> Value:
    if word[0] in "'\"":
        return word[1:-1]
    return float(word) if _NUMBER.fullmatch(word) else _CONSTANTS.get(word, word)


def _holds(clause: Clause, values: Mapping[str, Value]) -> bool:
    if clause.name not in values:
        return False
    value = values[clause.name]
    if clause.operator in _COMPARISONS:
        return _is_number(value) and _COMPARISONS[clause.operator](value, clause.value)
    return _is_same(value, clause.value) == (clause.operator != "!=")


def _is_same(value: Value, given: Value) -> bool:
    """Numbers are compared by value; anything else must also have the same type, so that `1` differs from `true`."""
    if _is_number(value) and _is_number(given):
        return value == given
    return type(value) is type(given) and value == given


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sort_key(value: Value) -> tuple[bool, Any]:
    """Numbers before texts, since the two cannot be compared; nan is sorted as a text."""
    is_text = not isinstance(value, int | float) or value != value  # noqa: PLR0124  # nan
    return is_text, str(value) if is_text else value


def _names(summaries: Iterable[Summary]) -> list[str]:
    return list(dict.fromkeys(name for run in summaries for name in run.values()))


def _full_name(name: str, known: Sequence[str]) -> str:
    """The name itself, or the full name of a last part or an alias: `base_lr` and `lr` mean `optim.base_lr`."""
    for found in _candidates(name, known):
        if len(found) == 1:
            return found[0]
        if found:
            raise MisuseError(f"{name!r} may mean {', '.join(found)}; give one of them.")
    near = difflib.get_close_matches(name, [*known, *map(last_part, known)], n=_NUM_SUGGESTED, cutoff=0.5)
    suggested = ", ".join(near or known[:_NUM_SUGGESTED]) or "none, since no run can be read"
    raise MisuseError(f"No run has a value {name!r}. Known names: {suggested}; --json shows all of them.")


def _candidates(name: str, known: Sequence[str]) -> Iterator[list[str]]:
    yield [full for full in known if full == name]
    yield [full for full in known if last_part(full) == name]
    yield [full for full in known if last_part(full) == _ALIASES.get(name)]


def _syntax_error(text: str, position: int) -> MisuseError:
    rest = text[position:].strip() or "its end"
    return MisuseError(
        f"{text!r} cannot be read from {rest!r} on; write comparisons such as lr>1e-3 or status=finished, joined by "
        '"and" or a comma, and put texts with spaces in quotes. "or" is not supported.'
    )
