"""One model of docs/models.md: how it is built, and the row that shows its columns."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from ava_pipeline.collect.groups import OVERALL, find_groups
from ava_pipeline.collect.targets import Model


@dataclass(frozen=True, slots=True)
class Known:
    """A kind of model: its name in the table, what builds it, and the libraries which that needs."""

    name: str
    build: Callable[[], Model]
    libraries: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The libraries that are not installed."""
        return [library for library in self.libraries if find_spec(library) is None]

    def model(self) -> Model:
        """Build it without memory for its weights; what its library warns of while it does is not this test's."""
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return self.build()

    def row(self) -> str:
        """Its line in the table, with all columns but `overall`."""
        columns = [f"`{column}`" for column in find_groups(self.model()) if column != OVERALL]
        return f"| {self.name} | {', '.join(columns) or 'only `overall`'} |"
