"""What a collector measures: parameters, groups of them, optimizers."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Self, TypeAlias
from weakref import ref

from torch import Tensor, nn
from torch.optim import Optimizer

from ava_pipeline.contract.manifest import Group
from ava_pipeline.errors import GroupsError

Model: TypeAlias = nn.Module | Sequence[nn.Module]  # several modules that are trained together

num_changes = attrgetter("_version")  # torch's count of a tensor's changes in place, which has no public name


@dataclass(frozen=True, slots=True, eq=False)
class RatePlace:
    """The parameter group behind a column of learning rates.

    `index` is that of the group in its optimizer, None once the optimizer has it no more. Groups are recognized by the
    parameters that they share: an optimizer makes its groups anew when it loads a state.
    """

    optimizer: str
    index: int | None
    name: str | None
    parameters: tuple[ref[Tensor], ...]

    @classmethod
    def of(cls, optimizer: str, index: int, group: Mapping[str, Any]) -> Self:
        """The place of a parameter group."""
        name = str(group["name"]) if "name" in group else None
        return cls(optimizer, index, name, tuple(map(ref, group["params"])))

    def shares_parameters(self, group: Mapping[str, Any]) -> bool:
        """Whether the group contains any parameter that this one had."""
        ids = set(map(id, group["params"]))
        return any(id(parameter) in ids for one in self.parameters if (parameter := one()) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTargets:
    """What is measured, from one collected step until one that finds the training changed.

    Attributes:
        parameters: every parameter of the model, once, in the model's order.
        names: the name of each.
        groups: column -> the names of its parameters; the first is `overall`.
        optimizers: by name, in the user's order.
        rate_places: for `lr_group_0`, `lr_group_1`, ... the parameter group.
        value_names: names of the user's values so far.
        label_names: names of the user's labels so far.
        resumed_from: last batch of the checkpoint; 0 for a fresh start.
        is_reduced: whether the backward pass already brings the gradients of several processes together.
        is_sharded: whether each process holds only a part of every gradient.
    """

    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    groups: Mapping[str, Group]
    optimizers: Mapping[str, Optimizer]
    rate_places: tuple[RatePlace, ...] = ()
    value_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    resumed_from: int = 0
    is_reduced: bool = False
    is_sharded: bool = False

    @classmethod
    def of(cls, model: Model, groups: Mapping[str, Group], optimizers: Mapping[str, Optimizer]) -> Self:
        """The targets of a model, wrapped or not, or of several modules."""
        named = named_parameters(model)
        modules = modules_of(model)
        return cls(
            parameters=tuple(named.values()),
            names=tuple(named),
            groups=groups,
            optimizers=optimizers,
            rate_places=_followed((), {}, optimizers),
            is_reduced=all(map(is_parallel, modules)),
            is_sharded=any(map(is_sharded, modules)),
        )

    def of_model(self, model: Model, groups: Mapping[str, Group]) -> Self:
        """The targets with the parameters and groups of another model, or of one that changed."""
        other = type(self).of(model, groups, self.optimizers)
        return replace(
            other, rate_places=self.rate_places, value_names=self.value_names, resumed_from=self.resumed_from
        )

    def renewed(
        self,
        *,
        optimizers: Mapping[str, Optimizer] | None = None,
        values: Iterable[str] = (),
        labels: Iterable[str] = (),
    ) -> Self:
        """The targets with the optimizers' present parameter groups, or other optimizers, and more values and labels.

        What had a column keeps it: further parameter groups, values and labels come behind.
        """
        optimizers = self.optimizers if optimizers is None else optimizers
        return replace(
            self,
            optimizers=optimizers,
            rate_places=_followed(self.rate_places, self.optimizers, optimizers),
            value_names=tuple(dict.fromkeys((*self.value_names, *values))),
            label_names=tuple(dict.fromkeys((*self.label_names, *labels))),
        )

    def changes(self) -> list[int]:
        """How often each parameter was changed in place so far."""
        return [*map(num_changes, self.parameters)]

    def positions(self) -> dict[str, tuple[int, ...]]:
        """Column -> positions of its parameters in `parameters`."""
        place = {name: position for position, name in enumerate(self.names)}
        return {column: tuple(place[name] for name in group.parameters) for column, group in self.groups.items()}

    def reads_the_same(self, other: "TrainingTargets") -> bool:
        """Whether what is read of a step comes from the same objects: parameters, optimizers, parameter groups."""
        mine, others = ([*map(id, one.parameters), *map(id, one.optimizers.values())] for one in (self, other))
        places = [[(place.optimizer, place.index) for place in one.rate_places] for one in (self, other)]
        return mine == others and places[0] == places[1]

    def optimizers_of(self) -> tuple[tuple[Optimizer, ...], ...]:
        """For each parameter the optimizers that hold it: none, one or, in turns, several."""
        owners: defaultdict[int, dict[Optimizer, None]] = defaultdict(dict)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    owners[id(parameter)][optimizer] = None
        return tuple(tuple(owners.get(id(parameter), ())) for parameter in self.parameters)

    def described_groups(self) -> dict[str, Group]:
        """The groups with their present state: whether any of their parameters is trained, and by which rates."""
        parameters = dict(zip(self.names, self.parameters, strict=True))
        rates = self._rates_of()
        return {
            column: group.model_copy(
                update={
                    "trainable": any(parameters[name].requires_grad for name in group.parameters),
                    "learning_rates": _rate_columns(rates.get(id(parameters[name]), ()) for name in group.parameters),
                }
            )
            for column, group in self.groups.items()
        }

    def rate_groups(self) -> list[Mapping[str, Any] | None]:
        """For each of `rate_places` the parameter group; None if the optimizer has it no more."""
        return [
            None if place.index is None else self.optimizers[place.optimizer].param_groups[place.index]
            for place in self.rate_places
        ]

    def rate_names(self) -> dict[str, str]:
        """The names that the optimizers give their parameter groups, by column; also of groups that are gone."""
        places = enumerate(self.rate_places)
        return {rate_column(column): place.name for column, place in places if place.name is not None}

    def _rates_of(self) -> dict[int, list[int]]:
        """Id of each parameter -> the places of its optimizer groups among `rate_places`."""
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, group in enumerate(self.rate_groups()):
            for parameter in group["params"] if group else ():
                places[id(parameter)].append(place)
        return places


def _followed(
    places: Sequence[RatePlace], before: Mapping[str, Optimizer], now: Mapping[str, Optimizer]
) -> tuple[RatePlace, ...]:
    """The places of the optimizers' present groups: what had a column keeps it, and further groups come behind."""
    followed = [replace(place, index=None) for place in places]
    for name, optimizer in now.items():
        older = {column: place for column, place in enumerate(places) if place.optimizer == name}
        columns = _columns_of(optimizer.param_groups, older, is_same=before.get(name) is optimizer)
        for index, group in enumerate(optimizer.param_groups):
            place = RatePlace.of(name, index, group)
            if index in columns:
                followed[columns[index]] = replace(place, name=places[columns[index]].name or place.name)
            else:
                followed.append(place)
    return tuple(followed)


def _columns_of(
    groups: Sequence[Mapping[str, Any]], older: Mapping[int, RatePlace], *, is_same: bool
) -> dict[int, int]:
    """Index of each group -> the column that it has already, if it has one.

    Groups of another optimizer take the columns in order. Of the same one, a group without any parameter from before
    is the one that was at its index if that is gone and there are as many groups as before.
    """
    if not is_same:
        return dict(enumerate(list(older)[: len(groups)]))
    columns: dict[int, int] = {}
    for index, group in enumerate(groups):
        for column, place in older.items():
            if column not in columns.values() and place.shares_parameters(group):
                columns[index] = column
                break
    present = {place.index: column for column, place in older.items() if place.index is not None}
    if len(present) == len(groups):
        for index, column in present.items():
            if index is not None and index not in columns and column not in columns.values():
                columns[index] = column
    return columns


def _rate_columns(places: Iterable[Iterable[int]]) -> tuple[str, ...]:
    return tuple(rate_column(place) for place in sorted({place for some in places for place in some}))


def rate_column(place: int) -> str:
    """The column of one optimizer group's learning rate."""
    return f"lr_group_{place}"


def optimizers_by_name(optimizer: Optimizer | Mapping[str, Optimizer]) -> dict[str, Optimizer]:
    """One optimizer or a mapping of them, as a mapping; raise GroupsError if it lacks optimizers or their groups.

    Wrappers that hold the real optimizer as `.optimizer`, as Accelerate's do, are replaced by it: their own step hooks
    may not exist.
    """
    given: dict[str, Any] = dict(optimizer) if isinstance(optimizer, Mapping) else {"optimizer": optimizer}
    optimizers: dict[str, Optimizer] = {name: _unwrapped(value) for name, value in given.items()}
    for name, value in optimizers.items():
        if not isinstance(value, Optimizer):
            raise GroupsError(
                f"optimizer {name!r} is a {type(value).__name__}: give a torch.optim.Optimizer, "
                "or a mapping name -> optimizer."
            )
        if not value.param_groups:
            raise GroupsError(f"optimizer {name!r} has no parameter groups, so there is no learning rate to record.")
    if not optimizers:
        raise GroupsError("The mapping of optimizers is empty: give at least one torch.optim.Optimizer.")
    return optimizers


def _unwrapped(optimizer: Any) -> Any:
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


def modules_of(model: Model) -> tuple[nn.Module, ...]:
    """The modules of a model: itself, or those of a list."""
    return (model,) if isinstance(model, nn.Module) else tuple(model)


def type_name(model: Model) -> str:
    """The name of a model's class, or of several."""
    return ", ".join(type(module).__name__ for module in modules_of(model))


def named_parameters(model: Model) -> dict[str, nn.Parameter]:
    """Every parameter once, by its `plain_name`; raise GroupsError if the model has no parameters.

    If two of several modules have a name in common, every name begins with its module's index: `1.conv1.weight`.
    """
    modules = modules_of(model)
    of_modules: list[dict[str, nn.Parameter]] = []
    known: set[int] = set()
    for module in modules:
        new = {
            plain_name(name, module): parameter
            for name, parameter in module.named_parameters()
            if id(parameter) not in known
        }
        known |= {id(parameter) for parameter in new.values()}
        of_modules.append(new)
    prefixes = prefixes_of(of_modules, "{}.")
    parameters = {
        prefix + name: parameter
        for prefix, named in zip(prefixes, of_modules, strict=True)
        for name, parameter in named.items()
    }
    if not parameters:
        raise GroupsError(
            f"{type_name(model)} has no parameters, so there are no gradients to measure. "
            "Give the collector the module that is being trained."
        )
    return parameters


def prefixes_of(names: Sequence[Iterable[str]], pattern: str) -> list[str]:
    """What begins the names of each module: nothing, or its index in the pattern if two modules share a name."""
    is_shared = any(count > 1 for count in Counter(name for of_module in names for name in of_module).values())
    return [pattern.format(index) if is_shared else "" for index in range(len(names))]


def plain_name(name: str, model: nn.Module) -> str:
    """A parameter's or module's name in the model inside the wrappers (without `_orig_mod.` and `module.`)."""
    name = name.replace("_orig_mod.", "")
    return name.removeprefix("module.") if is_parallel(model) else name


def is_parallel(model: nn.Module) -> bool:
    """Whether the outermost module, compiled or not, is DataParallel or DistributedDataParallel."""
    inner = getattr(model, "_orig_mod", model)
    return isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model contains FullyShardedDataParallel, whose plain gradients are one rank's part each."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile compiled the model, or any module of it."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and DistributedDataParallel, nested in any order."""
    inner = getattr(model, "_orig_mod", model)
    if is_parallel(inner):
        inner = inner.module
    return model if inner is model else unwrap(inner)
