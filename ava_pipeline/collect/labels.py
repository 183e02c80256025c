"""The labels that the user gives to `step`: checked at the first, and at every row those that can be counted."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ava_pipeline.contract.columns import shown
from ava_pipeline.contract.tables import check_column_name
from ava_pipeline.errors import MisuseError

VECTOR, MATRIX = 1, 2


def check_labels(labels: object, classes: Mapping[str, int]) -> None:
    """Raise MisuseError unless every label is a vector of classes whose number is known, or a matrix of scores."""
    _, problems = usable_labels(labels, classes)
    for problem in problems.values():
        raise MisuseError(problem)


def usable_labels(labels: object, classes: Mapping[str, int]) -> tuple[dict[str, Tensor], dict[object, str]]:
    """The labels that can be counted, and by name what is wrong with the others.

    `classes` has the number of classes of each label that has classes, which only the user knows: to find it in a
    tensor would wait for the device.
    """
    if labels is None:
        return {}, {}
    if not isinstance(labels, Mapping):
        return {}, {None: f"labels is {shown(labels)}: give a mapping name -> tensor, such as {{'winner': winner}}."}
    usable: dict[str, Tensor] = {}
    problems: dict[object, str] = {}
    for name, label in labels.items():
        problem = _problem(name, label, classes)
        if problem is None:
            usable[name] = label
        else:
            problems[name] = problem
    return usable, problems


def _problem(name: Any, label: Any, classes: Mapping[str, int]) -> str | None:
    try:
        check_column_name(str(name))
    except MisuseError as error:
        return f"labels: {error}"
    num_dims = label.dim() if isinstance(label, Tensor) else 0
    if num_dims not in {VECTOR, MATRIX}:
        given = f"a tensor of shape {tuple(label.shape)}" if isinstance(label, Tensor) else f"a {type(label).__name__}"
        return (
            f"labels[{name!r}]: expected a tensor with one class for each sample, or with a row of votes or shares for "
            f"each, got {given}."
        )
    if num_dims == MATRIX and label.shape[1] < MATRIX:  # one column is neither votes nor shares of several scores
        return f"labels[{name!r}] has shape {tuple(label.shape)}: give its .squeeze(1), a class for each sample."
    if num_dims == VECTOR and name not in classes:
        return (
            f"labels[{name!r}] has shape {tuple(label.shape)}, so it has classes, and their number cannot be known "
            f"without waiting for the device: set label_classes: {{{name}: <number of classes>}}."
        )
    if num_dims == MATRIX and name in classes:
        return (
            f"labels[{name!r}] has shape {tuple(label.shape)}, so each sample has several numbers: leave {name!r} out "
            "of label_classes."
        )
    return None
