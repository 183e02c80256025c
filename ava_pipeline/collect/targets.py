"""What a collector measures: parameters, groups of them, optimizers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import nn
from torch.optim import Optimizer

from ava_pipeline.contract.manifest import Group
from ava_pipeline.errors import GroupsError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTargets:
    """What stays the same from the first collected step to the last.

    Attributes:
        parameters: every parameter of the model, once, in the model's order.
        names: the name of each.
        groups: column -> the names of its parameters; the first is `overall`.
        optimizers: by name, in the user's order.
        value_names: names of the user's values, known at the first collected step.
        resumed_from: last batch of the checkpoint; 0 for a fresh start.
        is_reduced: whether the backward pass already brings the gradients of several processes together.
        is_sharded: whether each process holds only a part of every gradient.
    """

    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    groups: Mapping[str, Group]
    optimizers: Mapping[str, Optimizer]
    value_names: tuple[str, ...] = ()
    resumed_from: int = 0
    is_reduced: bool = False
    is_sharded: bool = False

    @classmethod
    def of(cls, model: nn.Module, groups: Mapping[str, Group], optimizers: Mapping[str, Optimizer]) -> Self:
        """The targets of a model, wrapped or not."""
        named = named_parameters(model)
        return cls(
            parameters=tuple(named.values()),
            names=tuple(named),
            groups=groups,
            optimizers=optimizers,
            is_reduced=is_parallel(model),
            is_sharded=is_sharded(model),
        )

    def positions(self) -> dict[str, tuple[int, ...]]:
        """Column -> positions of its parameters in `parameters`."""
        place = {name: position for position, name in enumerate(self.names)}
        return {column: tuple(place[name] for name in group.parameters) for column, group in self.groups.items()}

    def optimizer_of(self) -> tuple[Optimizer | None, ...]:
        """For each parameter the optimizer that steps it, or None."""
        owners = {
            id(parameter): optimizer
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return tuple(owners.get(id(parameter)) for parameter in self.parameters)

    def described_groups(self) -> dict[str, Group]:
        """The groups with their present state: whether any of their parameters is trained, and by which rates."""
        parameters = dict(zip(self.names, self.parameters, strict=True))
        rates = self._rates_of()
        return {
            column: group.model_copy(
                update={
                    "trainable": any(parameters[name].requires_grad for name in group.parameters),
                    "learning_rates": _rate_columns(rates.get(id(parameters[name])) for name in group.parameters),
                }
            )
            for column, group in self.groups.items()
        }

    def _rates_of(self) -> dict[int, int]:
        """Id of each parameter -> the place of its optimizer group among those of all optimizers."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        return {id(parameter): place for place, group in enumerate(groups) for parameter in group["params"]}


def _rate_columns(places: Iterable[int | None]) -> tuple[str, ...]:
    return tuple(rate_column(place) for place in sorted({place for place in places if place is not None}))


def rate_column(place: int) -> str:
    """The column of one optimizer group's learning rate."""
    return f"lr_group_{place}"


def optimizers_by_name(optimizer: Optimizer | Mapping[str, Optimizer]) -> dict[str, Optimizer]:
    """One optimizer or a mapping of them, as a mapping; raise GroupsError if it lacks optimizers or their groups."""
    optimizers: dict[str, Optimizer] = dict(optimizer) if isinstance(optimizer, Mapping) else {"optimizer": optimizer}
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


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, by its `plain_name`; raise GroupsError if the model has no parameters."""
    parameters = {plain_name(name, model): parameter for name, parameter in model.named_parameters()}
    if not parameters:
        raise GroupsError(
            f"{type(model).__name__} has no parameters, so there are no gradients to measure. "
            "Give the collector the module that is being trained."
        )
    return parameters


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


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and DistributedDataParallel, nested in any order."""
    inner = getattr(model, "_orig_mod", model)
    if is_parallel(inner):
        inner = inner.module
    return model if inner is model else unwrap(inner)
