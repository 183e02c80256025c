"""What a collector measures: parameters, groups of them, optimizers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from ava_pipeline.contract.manifest import Group
from ava_pipeline.errors import GroupsError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTargets:
    """What stays the same from the first collected step to the last.

    Attributes:
        parameters: every parameter of the model, once, in the model's order.
        names: their names, one each.
        groups: column -> the parameters behind it, by name; the first is `overall`.
        optimizers: by name, in the user's order.
        value_names: names of the user's values.
        resumed_from: last batch of the checkpoint; 0 for a fresh start.
    """

    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    groups: Mapping[str, Group]
    optimizers: Mapping[str, Optimizer]
    value_names: tuple[str, ...] = ()
    resumed_from: int = 0

    @property
    def device(self) -> torch.device:
        """Where the numbers come together: the first accelerator that holds a parameter, else the CPU."""
        devices = [parameter.device for parameter in self.parameters]
        return next((device for device in devices if device.type != "cpu"), devices[0])

    def positions(self) -> dict[str, tuple[int, ...]]:
        """Column -> positions of its parameters in `parameters`."""
        place = {name: position for position, name in enumerate(self.names)}
        return {column: tuple(place[name] for name in group.parameters) for column, group in self.groups.items()}

    def optimizer_of(self) -> tuple[Optimizer | None, ...]:
        """The optimizer that steps each parameter; None where none does."""
        owners = {
            id(parameter): optimizer
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return tuple(owners.get(id(parameter)) for parameter in self.parameters)

    def described_groups(self) -> dict[str, Group]:
        """The groups, with what is known of them now: whether anything in them is trained, and by which rates."""
        parameters = dict(zip(self.names, self.parameters, strict=True))
        rates = self._rates_of()
        return {
            column: group.model_copy(
                update={
                    "trainable": any(parameters[name].requires_grad for name in group.parameters),
                    "learning_rates": _distinct(rates.get(id(parameters[name])) for name in group.parameters),
                }
            )
            for column, group in self.groups.items()
        }

    def _rates_of(self) -> dict[int, int]:
        """Place of each parameter's group among those of all optimizers, by the parameter's id."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        return {id(parameter): place for place, group in enumerate(groups) for parameter in group["params"]}


def _distinct(places: Iterable[int | None]) -> tuple[str, ...]:
    return tuple(rate_column(place) for place in sorted({place for place in places if place is not None}))


def rate_column(place: int) -> str:
    """The column of the learning rate of one optimizer group."""
    return f"lr_group_{place}"


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, under the name it has without wrappers.

    `torch.compile` (`_orig_mod.`) and `DistributedDataParallel` (`module.`) are seen through.

    Raises:
        GroupsError: the model has no parameters.
    """
    found = {plain_name(name, model): parameter for name, parameter in model.named_parameters()}
    if not found:
        raise GroupsError(
            f"{type(model).__name__} has no parameters, so there are no gradients to measure. "
            "Give the collector the module that is being trained."
        )
    return found


def plain_name(name: str, model: nn.Module) -> str:
    """A parameter's or module's name as the model inside the wrappers knows it."""
    name = name.replace("_orig_mod.", "")
    return name.removeprefix("module.") if is_parallel(model) else name


def is_parallel(model: nn.Module) -> bool:
    """Whether the outermost module, compiled or not, is DataParallel or DistributedDataParallel."""
    inner = getattr(model, "_orig_mod", model)
    return isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel)


def is_sharded(model: nn.Module) -> bool:
    """Whether FullyShardedDataParallel is in it, which leaves plain tensors that are a rank's part of a gradient."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and DistributedDataParallel, in whatever order they were put on."""
    inner = getattr(model, "_orig_mod", model)
    if is_parallel(inner):
        inner = inner.module
    return model if inner is model else unwrap(inner)


def optimizers_by_name(optimizer: Optimizer | Mapping[str, Optimizer]) -> dict[str, Optimizer]:
    """One optimizer or a mapping of them, as a mapping.

    Raises:
        GroupsError: there is none, or one has no parameter groups.
    """
    found: dict[str, Optimizer] = dict(optimizer) if isinstance(optimizer, Mapping) else {"optimizer": optimizer}
    for name, one in found.items():
        if not isinstance(one, Optimizer):
            raise GroupsError(
                f"optimizer {name!r} is a {type(one).__name__}: give a torch.optim.Optimizer, or a mapping name -> one."
            )
        if not one.param_groups:
            raise GroupsError(f"optimizer {name!r} has no parameter groups, so there is no learning rate to record.")
    if not found:
        raise GroupsError("An empty mapping of optimizers was given: give at least one torch.optim.Optimizer.")
    return found
