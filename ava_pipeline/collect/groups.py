"""Which parameters stand behind which column."""

import difflib
import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from ava_pipeline.collect.architecture import find_parts
from ava_pipeline.collect.targets import named_parameters
from ava_pipeline.contract.manifest import Group, Role
from ava_pipeline.contract.tables import KEY_COLUMNS, check_column_name
from ava_pipeline.errors import GroupsError, MisuseError

_log = logging.getLogger("ava_pipeline")

OVERALL = "overall"
RESERVED = (*(column.name for column in KEY_COLUMNS), OVERALL)

GroupChoice: TypeAlias = nn.Module | nn.Parameter | str | Sequence[str] | Iterable[nn.Parameter]


def find_groups(model: nn.Module, chosen: Mapping[str, GroupChoice] | None = None) -> dict[str, Group]:
    """Name the groups of a model, `overall` first.

    Args:
        model: what is being trained, wrapped or not.
        chosen: column -> a module, parameters, or globs over parameter names (`"stages.3.*"`). Left out, the head,
            its layers and the last stage of the backbone are found.

    Raises:
        GroupsError: no parameters behind a column.
        MisuseError: a name that cannot name a column.
    """
    parameters = named_parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    parts: Mapping[str, GroupChoice] = find_parts(model) if chosen is None else chosen
    members = {OVERALL: frozenset(parameters)}
    for column, choice in parts.items():
        check_column_name(column)
        if column in RESERVED:
            raise MisuseError(
                f"groups: {column!r} is a column already; choose another name than {', '.join(RESERVED)}."
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
    """Log the columns; where nothing was found, with a warning that shows how to name groups."""
    told = ", ".join(f"{column} ({len(group.parameters)})" for column, group in groups.items())
    _log.info("%s: columns (parameters): %s", type(model).__name__, told)
    if is_found and len(groups) == 1:
        _log.warning(
            "No head and no backbone were found in %s: only %r is recorded. "
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
    found = [name for one in given for name in _matches(column, one, names)]
    if not found:
        raise GroupsError(
            f"There are no parameters behind column {column!r} (given {choice!r}). "
            f"Allowed are a module, parameters or name globs; the model's names begin with {_prefixes(names)}."
        )
    return found


def _matches(column: str, one: object, names: Mapping[int, str]) -> list[str]:
    if isinstance(one, nn.Parameter):
        if id(one) not in names:
            raise GroupsError(
                f"Column {column!r} was given a parameter of shape {tuple(one.shape)} that is not in the model: "
                "take it from the model that the collector was given."
            )
        return [names[id(one)]]
    found = fnmatch.filter(names.values(), str(one))
    if not found:
        near = difflib.get_close_matches(str(one), list(names.values()), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise GroupsError(
            f"Column {column!r}: no parameter's name matches {one!r}.{hint} Names begin with {_prefixes(names)}."
        )
    return found


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
    """The smallest group that holds all of this one and more."""
    larger = [other for other, held in members.items() if held > members[column]]
    return min(larger, key=lambda other: len(members[other]), default=None)
