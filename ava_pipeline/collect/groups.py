"""Groups: which parameters each column of gradient norms measures."""

import difflib
import fnmatch
import glob
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import nn
from torch.optim import Optimizer

from ava_pipeline.collect.architecture import Part, find_parts
from ava_pipeline.collect.families import HEAD_NAMES
from ava_pipeline.collect.targets import (
    Model,
    TrainingTargets,
    modules_of,
    named_parameters,
    optimizers_by_name,
    prefixes_of,
    type_name,
    unwrap,
)
from ava_pipeline.contract.manifest import Group, Role
from ava_pipeline.contract.tables import KEY_COLUMNS, check_column_name
from ava_pipeline.errors import GroupsError, MisuseError
from ava_pipeline.logs import logger

OVERALL = "overall"
RESERVED = (*(column.name for column in KEY_COLUMNS), OVERALL)

GroupChoice: TypeAlias = nn.Module | nn.Parameter | str | Sequence[str] | Iterable[nn.Parameter]


def find_groups(model: Model, chosen: Mapping[str, GroupChoice] | None = None) -> dict[str, Group]:
    """Name the groups of a model, wrapped or not, `overall` first; by default those of `find_parts`.

    `chosen` maps a column to a module, parameters, or globs over parameter names (`"stages.3.*"`). Raise GroupsError if
    a column has no parameters, MisuseError if a name cannot name a column.

    Several modules have the parts of each, and a column `module_<index>` for each. If two of them have a part in
    common, the columns of all parts begin so: `module_0_mlp_head`.
    """
    parameters = named_parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    members = {OVERALL: frozenset(parameters)}
    roles: dict[str, Role] = {OVERALL: "overall"}
    if chosen is None:
        for column, part in _found(modules_of(model)).items():
            held = frozenset(names[id(parameter)] for parameter in part.parameters() if id(parameter) in names)
            if held not in members.values():  # two columns of the same numbers would be one too many
                members[column], roles[column] = held, part.role
    for column, choice in (chosen or {}).items():
        check_column_name(column)
        if column in RESERVED:
            raise MisuseError(
                f"groups: {column!r} is a column already; choose a name other than {', '.join(RESERVED)}."
            )
        members[column], roles[column] = frozenset(_members(column, choice, names)), _role(column)
    return {
        column: Group(
            role=roles[column],
            parent=_parent(column, members),
            parameters=tuple(name for name in parameters if name in held),
        )
        for column, held in members.items()
    }


class ChosenGroups:
    """The groups that the user chose, or those that are found, in one model and in what it becomes.

    After a change of the model, a module is the one at the same place, and parameters are those of the same names.

    Attributes:
        columns: the groups in the model that was given.
        is_found: whether the user chose none.
    """

    def __init__(self, model: Model, chosen: Mapping[str, GroupChoice] | None) -> None:
        self.columns = find_groups(model, chosen)
        self.is_found = chosen is None
        self._lasting = {
            column: _lasting(model, choice, self.columns[column]) for column, choice in (chosen or {}).items()
        }

    def columns_of(self, model: Model) -> dict[str, Group]:
        """The groups in another model; a chosen one that it does not have is left out, with a warning."""
        present: dict[str, GroupChoice] = {}
        for column, lasting in self._lasting.items():
            try:
                choice = lasting.of(model) if isinstance(lasting, _ModulePlace) else lasting
                find_groups(model, {column: choice})
            except GroupsError as error:
                logger.warning("the column %r is null from now on: %s", column, error)
            else:
                present[column] = choice
        return find_groups(model, None if self.is_found else present)


class _ModulePlace(NamedTuple):
    """Which of several models a module belongs to, and its path there."""

    number: int
    path: str

    def of(self, model: Model) -> nn.Module:
        """The module at the same place in another model; raise GroupsError if there is none."""
        modules = modules_of(model)
        try:
            return unwrap(modules[self.number]).get_submodule(self.path)
        except (AttributeError, IndexError) as error:
            raise GroupsError(f"{type_name(model)} has no module {self.path!r}, which the group was.") from error


def _lasting(model: Model, choice: GroupChoice, group: Group) -> "GroupChoice | _ModulePlace":
    """A choice that can be made again in another model."""
    if isinstance(choice, nn.Module):
        for number, module in enumerate(modules_of(model)):
            for path, inner in unwrap(module).named_modules():
                if inner is choice:
                    return _ModulePlace(number, path)
    elif isinstance(choice, str) or (isinstance(choice, Sequence) and all(isinstance(one, str) for one in choice)):
        return choice
    return tuple(map(glob.escape, group.parameters))


def rebound(
    targets: TrainingTargets,
    model: Model | None,
    groups: ChosenGroups,
    optimizer: Optimizer | Mapping[str, Optimizer] | None,
) -> TrainingTargets:
    """The targets after a change of the model, of the optimizer, or of both; what is None stays as it is."""
    if model is not None:
        targets = targets.of_model(model, groups.columns_of(model))
    return targets.renewed(optimizers=None if optimizer is None else optimizers_by_name(optimizer))


def log_groups(model: Model, groups: Mapping[str, Group], *, is_found: bool) -> None:
    """Log the columns; if neither a head nor a backbone was found, warn and show how to name groups."""
    columns = ", ".join(f"{column} ({len(group.parameters)})" for column, group in groups.items())
    logger.info("%s: columns (parameters): %s", type_name(model), columns)
    if is_found and all(group.role in {"overall", "other"} for group in groups.values()):
        logger.warning(
            "No head and no backbone were found in %s, so the only columns are %s. "
            "Name groups yourself, such as groups={'mlp_head': model.my_head, 'backbone_last': 'encoder.blocks.11.*'}.",
            type_name(model),
            ", ".join(map(repr, groups)),
        )


def _found(modules: Sequence[nn.Module]) -> dict[str, Part]:
    """The parts of one module, or of each of several."""
    if len(modules) == 1:
        return find_parts(modules[0])
    parts = [find_parts(module) for module in modules]
    found = {f"module_{index}": Part("other", (module,)) for index, module in enumerate(modules)}
    for prefix, of_module in zip(prefixes_of(parts, "module_{}_"), parts, strict=True):
        found |= {prefix + column: part for column, part in of_module.items()}
    return {column: part for column, part in found.items() if next(part.parameters(), None) is not None}


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
    """The role that the name of a user's own group says."""
    if column in HEAD_NAMES:
        return "head"
    if column.startswith("mlp_layer_"):
        return "head_layer"
    return "backbone_last" if column.startswith("backbone") else "other"


def _parent(column: str, members: Mapping[str, frozenset[str]]) -> str | None:
    """The smallest group that contains all parameters of this group and more."""
    larger = [other for other, held in members.items() if held > members[column]]
    return min(larger, key=lambda other: len(members[other]), default=None)
