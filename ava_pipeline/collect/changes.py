"""What changes in a training while it runs: parameter groups, trained parameters, the parameters of the model."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from weakref import ref

from torch import nn

from ava_pipeline.collect.targets import Model, TrainingTargets, is_compiled, modules_of, unwrap

# Reading a model's parameters takes as long as a few rows, and some models leave out other layers at every step.
MAX_MODEL_CHECKS = 20
MAX_NAMED = 5

_requires_grad = attrgetter("requires_grad")


class TrainingChanges:
    """Compares the training with what it was at the last collected step.

    A row costs a few comparisons of identities; more is read only if they differ. Models are not kept alive.

    Attributes:
        is_compiled: whether torch.compile compiled the model, or a part of it.
    """

    def __init__(self, targets: TrainingTargets, model: Model) -> None:
        self.is_compiled = False
        self._num_model_checks = 0
        self.begin(targets, model)

    def begin(self, targets: TrainingTargets, model: Model | None = None) -> None:
        """Compare with these targets from now on, and with this model unless it is None."""
        if model is not None:
            self.is_compiled = any(map(is_compiled, modules_of(model)))
            self._modules = [ref(unwrap(module)) for module in modules_of(model)]  # a wrapper may be gone earlier
        self._targets = targets
        self._ids = frozenset(map(id, targets.parameters))
        self._identities = self._read_identities()
        self._missing: frozenset[int] = frozenset()

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are trained, without wrappers, except those that are gone."""
        return [module for reference in self._modules if (module := reference()) is not None]

    def have_come(self) -> bool:
        """Whether the optimizers hold other parameters, or others of the model's are trained, than at the last call."""
        identities = self._read_identities()
        before, self._identities = self._identities, identities
        return identities != before

    def complaint(self, missing: frozenset[int]) -> str | None:
        """What is wrong if the model or its optimizers have other parameters than the targets; None if they agree.

        `missing` are the positions of the parameters without a gradient in this row.
        """
        num_unknown = sum(parameter not in self._ids for parameter in self._identities[1])
        if num_unknown:
            return (
                f"the optimizers hold {num_unknown} parameters that the collector does not know, so they are in no "
                "column. After a change of the model, call telemetry.rebind(model=model)."
            )
        names = self._targets.names
        gone = [names[position] for position in self.gone(sorted(missing))] if missing - self._missing else []
        self._missing = missing
        if not gone:
            return None
        more = f" and {len(gone) - MAX_NAMED} more" if len(gone) > MAX_NAMED else ""
        return (
            f"the model no longer has {', '.join(gone[:MAX_NAMED])}{more}, and what replaced them is in no column. "
            "Call telemetry.rebind(model=model), with optimizer=optimizer if that is another one too."
        )

    def gone(self, positions: Sequence[int]) -> list[int]:
        """Which of these positions are those of parameters that the model has no more; none after many searches."""
        modules = self.modules
        if len(modules) < len(self._modules) or self._num_model_checks >= MAX_MODEL_CHECKS:
            return []
        self._num_model_checks += 1
        present = {id(parameter) for module in modules for parameter in module.parameters()}
        return [position for position in positions if id(self._targets.parameters[position]) not in present]

    def _read_identities(self) -> tuple[list[int], list[int], list[bool]]:
        """Of the parameter groups and of their parameters, and which parameters of the model are trained."""
        groups = [group for optimizer in self._targets.optimizers.values() for group in optimizer.param_groups]
        parameters = map(id, chain.from_iterable(map(itemgetter("params"), groups)))
        return [*map(id, groups)], [*parameters], [*map(_requires_grad, self._targets.parameters)]
