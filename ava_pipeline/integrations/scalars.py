"""The numbers in what a framework gives: the output of a training step, or metrics."""

from collections.abc import Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ava_pipeline.collect.measures.measure import Value
from ava_pipeline.contract.builtin_tables import STEPS
from ava_pipeline.contract.tables import check_column_name
from ava_pipeline.errors import MisuseError

_TAKEN = frozenset(column.name for column in STEPS.columns)


def scalars(output: object) -> dict[str, Value]:
    """The single numbers in an output, by name; a number or a tensor alone is the loss.

    Left out are texts, tensors with several elements, and names that cannot be columns of `steps` or are its own.
    """
    named = output if isinstance(output, Mapping) else {"loss": output}
    return {name: _detached(value) for name, value in named.items() if _can_be_column(name) and _is_scalar(value)}


def _is_scalar(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real | np.bool_)


def _can_be_column(name: object) -> bool:
    with suppress(MisuseError):
        check_column_name(str(name))
        return isinstance(name, str) and name not in _TAKEN
    return False


def _detached(value: Any) -> Value:
    number: Value = value.detach() if isinstance(value, Tensor) else value
    return number
