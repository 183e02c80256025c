"""The values that the user gives to `step`: checked at the first, and turned into numbers at every row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ava_pipeline.collect.measures.measure import Value
from ava_pipeline.contract.builtin_tables import STEPS
from ava_pipeline.contract.columns import shown
from ava_pipeline.contract.tables import check_column_name
from ava_pipeline.errors import MisuseError
from ava_pipeline.interrupts import is_from_signal


@dataclass(frozen=True, slots=True)
class StepCall:
    """What the user gave to one call of `TelemetryCollector.step`, beside the batch and the epoch."""

    values: Mapping[str, Value] | None = None
    labels: Mapping[str, Tensor] | None = None
    sample_ids: Sequence[object] | None = None
    optimizer: str | None = None
    global_step: int | None = None


_TAKEN = frozenset(column.name for column in STEPS.columns)


def check_values(values: object) -> None:
    """Raise MisuseError unless values map names that can name columns to scalars."""
    for name, value in _named(values):
        problem = _name_problem(name) or _tensor_problem(name, value)
        if problem is not None:
            raise MisuseError(problem)


def as_numbers(values: object) -> tuple[dict[str, Value], dict[object, str]]:
    """The values that are numbers, arrays of one element among them, and by name what is wrong with the others.

    Those are null; a name that cannot name a column has none.
    """
    numbers: dict[str, Value] = {}
    problems: dict[object, str] = {}
    try:
        named = _named(values)
    except MisuseError as error:
        return {}, {None: f"{error} No value is recorded."}
    for name, value in named:
        problem = _name_problem(name)
        if problem is not None:
            problems[name] = f"{problem} It is not recorded."
            continue
        numbers[name], problem = _as_number(name, value)
        if problem is not None:
            problems[name] = f"{problem} It is null."
    return numbers, problems


def _named(values: object) -> Iterable[tuple[Any, Any]]:
    if values is None:
        return ()
    if not isinstance(values, Mapping):
        raise MisuseError(f"values is {shown(values)}: give a mapping name -> number, such as {{'loss': loss}}.")
    return values.items()


def _name_problem(name: object) -> str | None:
    """Why the table of steps cannot have a column of this name; None if it can."""
    if not isinstance(name, str):
        return f"values has the name {shown(name)}: give a mapping name -> number, such as {{'loss': loss}}."
    if name in _TAKEN:
        return f"values gives the table 'steps' its column {name!r} twice: choose another name."
    try:
        check_column_name(name)
    except MisuseError as error:
        return f"values: {error}"
    return None


def _tensor_problem(name: str, value: object) -> str | None:
    if not isinstance(value, Tensor) or (value.numel() == 1 and not value.is_complex()):
        return None
    return (
        f"values[{name!r}] is a tensor of shape {tuple(value.shape)} and {value.dtype}: give one real number, "
        "such as its .mean()."
    )


def _as_number(name: str, value: Any) -> tuple[Value, str | None]:
    """A value as a number or a tensor with one element, or what is wrong with it."""
    if value is None or isinstance(value, float):
        return value, None
    if isinstance(value, Tensor):
        problem = _tensor_problem(name, value)
        return (value if problem is None else None), problem
    try:
        return float(value.item() if hasattr(value, "item") else value), None
    except Exception as error:
        if is_from_signal(error):
            raise
        problem = f"values[{name!r}] is {shown(value)} ({type(value).__name__}), which is not a number."
        return None, f"{problem} Pass numbers, or tensors with one element."
