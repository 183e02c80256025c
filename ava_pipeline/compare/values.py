"""Values of two runs side by side: which are equal, how they are printed, and how they are exported."""

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ava_pipeline.contract.arrays import Bools
from ava_pipeline.terminal import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

Value: TypeAlias = float | str | bool | None

FINITE, NAN, INF, MINUS_INF, NULL = range(5)  # the kinds of values, which are never equal to each other
_DIGITS = (6, 9, 17)


class Pair(NamedTuple):
    """A value of run A and the value of run B in the same place; None if it was not measured."""

    a: Value
    b: Value

    @property
    def relative(self) -> float | None:
        """The distance of two finite numbers, relative to the larger of them; None of anything else."""
        if not (_is_finite(self.a) and _is_finite(self.b)):
            return None
        a, b = float(self.a or 0), float(self.b or 0)
        largest = max(abs(a), abs(b))
        return abs(a / largest - b / largest) if largest else 0.0

    def texts(self) -> tuple[str, str]:
        """Both as text, with as many digits as tell them apart."""
        texts = ("", "")
        for digits in _DIGITS:
            texts = value_text(self.a, digits), value_text(self.b, digits)
            if texts[0] != texts[1]:
                break
        return texts


def kinds_of(values: "NDArray[Any]", is_null: Bools) -> "NDArray[np.int8]":
    """The kind of each number [rows]: finite, nan, inf, -inf or null."""
    kinds: NDArray[np.int8] = np.full(len(values), FINITE, dtype=np.int8)
    if values.dtype.kind == "f":
        kinds[np.isnan(values)] = NAN
        kinds[np.isposinf(values)] = INF
        kinds[np.isneginf(values)] = MINUS_INF
    kinds[is_null] = NULL
    return kinds


def value_text(value: Value, digits: int = _DIGITS[0]) -> str:
    """A value for a person: `not measured` for null, control characters escaped."""
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return printable(str(value))


def plain(value: object) -> Any:
    """Dataclasses with their properties, tuples and paths as JSON has them.

    A number that is not finite is the text nan, inf or -inf, so that null always means "not measured" or "not known".
    """
    if isinstance(value, Pair):
        return {"a": plain(value.a), "b": plain(value.b), "relative": plain(value.relative)}
    if is_dataclass(value) and not isinstance(value, type):
        derived = [name for name, one in vars(type(value)).items() if isinstance(one, property)]
        return {name: plain(getattr(value, name)) for name in (*(field.name for field in fields(value)), *derived)}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def _is_finite(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
