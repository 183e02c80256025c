"""Groups: which parameters each column of gradient norms measures."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from ava_pipeline.collect.architecture import find_parts
from ava_pipeline.collect.targets import named_parameters
from ava_pipeline.contract.manifest import Group, Role
from ava_pipeline.contract.tables import KEY_COLUMNS, check_column_name
from ava_pipeline.errors import GroupsError, MisuseError
from ava_pipeline.logs import logger

OVERALL = "overall"
RESERVED = (*(column.name for column in KEY_COLUMNS), OVERALL)

GroupChoice: TypeAlias = nn.Module | nn.Parameter | str | Sequence[str] | Iterable[nn.Parameter]


def find_groups(model: nn.Module, chosen: Mapping[str, GroupChoice] | None = None) -> dict[str, Group]:
    """Name the groups of a model, wrapped or not, `overall` first; by default those of `find_parts`.

    `chosen` maps a column to a module, parameters, or globs over parameter names (`"stages.3.*"`). Raise GroupsError if
    a column has no parameters, MisuseError if a name cannot name a column.
    """
    parameters = named_parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    parts: Mapping[str, GroupChoice] = find_parts(model) if chosen is None else chosen
    members = {OVERALL: frozenset(parameters)}
    for column, choice in parts.items():
        check_column_name(column)
        if column in RESERVED:
            raise MisuseError(
                f"groups: {column!r} is a column already; choose a name other than {', '.join(RESERVED)}."
            )
        members[column] = frozenset(_members(column, choice, names))
    return {
        column: Group(
            role=_role(column),
            parent=_parent(column, members),
            parameters=tuple(name for name in parameters if name in held),
        )
        for column, held in members.items()
    }


def log_groups(model: nn.Module, groups: Mapping[str, Group], *, is_found: bool) -> None:
    """Log the columns; if neither a head nor a backbone was found, warn and show how to name groups."""
    columns = ", ".join(f"{column} ({len(group.parameters)})" for column, group in groups.items())
    logger.info("%s: columns (parameters): %s", type(model).__name__, columns)
    if is_found and len(groups) == 1:
        logger.warning(
            "No head and no backbone were found in %s, so only %r is recorded. "
            "Name groups yourself, such as groups={'mlp_head': model.my_head, 'backbone_last': 'encoder.blocks.11.*'}.",
            type(model).__name__,
            OVERALL,
        )


def _members(column: str, choice: GroupChoice, names: Mapping[int, str]) -> list[str]:
    given: Iterable[object]
    if isinstance(choice, nn.Module):
        given = choice.parameters()
    elif isinstance(choice, str | nn.Parameter):
        given = [choice]
    elif isinstance(choice, Iterable):
        given = choice
    else:
        raise GroupsError(f"Column {column!r} was given {choice!r}: give a module, parameters or name globs.")
    members = [name for item in given for name in _matches(column, item, names)]
    if not members:
        raise GroupsError(
            f"Column {column!r} has no parameters (given {choice!r}). "
            f"Give a module, parameters or name globs; the model's names begin with {_prefixes(names)}."
        )
    return members


def _matches(column: str, item: object, names: Mapping[int, str]) -> list[str]:
    if isinstance(item, nn.Parameter):
        if id(item) not in names:
            raise GroupsError(
                f"Column {column!r} was given a parameter of shape {tuple(item.shape)} that is not in the model: "
                "take it from the model that the collector was given."
            )
        return [names[id(item)]]
    matches = fnmatch.filter(names.values(), str(item))
    if not matches:
        near = difflib.get_close_matches(str(item), list(names.values()), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise GroupsError(
            f"Column {column!r}: no parameter's name matches {item!r}.{hint} Names begin with {_prefixes(names)}."
        )
    return matches


def _prefixes(names: Mapping[int, str]) -> str:
    return ", ".join(dict.fromkeys(name.split(".", 1)[0] for name in names.values()))


def _role(column: str) -> Role:
    if column == OVERALL:
        return "overall"
    if column == "mlp_head":
        return "head"
    if column.startswith("mlp_layer_"):
        return "head_layer"
    return "backbone_last" if column.startswith("backbone") else "other"


def _parent(column: str, members: Mapping[str, frozenset[str]]) -> str | None:
    """The smallest group that contains all parameters of this group and more."""
    larger = [other for other, held in members.items() if held > members[column]]
    return min(larger, key=lambda other: len(members[other]), default=None)
