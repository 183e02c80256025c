"""Rows of a healthy training, which the tests of the signs change."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Group
from ava_pipeline.signs.evidence import Evidence, TableValues
from ava_pipeline.signs.healthy import healthy_signs
from ava_pipeline.signs.registry import listed_findings
from ava_pipeline.signs.thresholds import Thresholds

Column = NDArray[np.float64] | list[float | None]
Columns = dict[str, Any]

NUM_ROWS = 200
EVERY = 10
TRAINED = {"trainable": True}

GROUPS = {
    "overall": Group(
        role="overall", parameters=("a", "b", "c"), learning_rates=("lr_group_0", "lr_group_1"), **TRAINED
    ),
    "trunk": Group(
        role="backbone_last", parent="overall", parameters=("a",), learning_rates=("lr_group_0",), **TRAINED
    ),
    "top": Group(role="head", parent="overall", parameters=("b", "c"), learning_rates=("lr_group_1",), **TRAINED),
    "first": Group(role="head_layer", parent="top", parameters=("b",), learning_rates=("lr_group_1",), **TRAINED),
    "second": Group(role="head_layer", parent="top", parameters=("c",), learning_rates=("lr_group_1",), **TRAINED),
}


def columns(num_rows: int = NUM_ROWS, seed: int = 0) -> Columns:
    """Every column of the three tables; norms vary by a fifth and fall by half, as does the loss."""
    rng = np.random.default_rng(seed)

    def noisy(level: float) -> NDArray[np.float64]:
        falling: NDArray[np.float64] = (
            level * np.exp(0.2 * rng.standard_normal(num_rows)) * np.linspace(1, 0.5, num_rows)
        )
        return falling

    trunk, first, second, stem = noisy(0.3), noisy(0.2), noisy(0.2), noisy(0.5)
    top = np.hypot(first, second)
    return {
        "overall": np.sqrt(trunk**2 + top**2 + stem**2),
        "trunk": trunk,
        "top": top,
        "first": first,
        "second": second,
        "lr_group_0": np.full(num_rows, 1e-4),
        "lr_group_1": np.full(num_rows, 1e-3),
        "loss_scale": [None] * num_rows,
        "clip_rate": np.full(num_rows, 0.1),
        "loss": noisy(0.1),
    }


def clip(given: Columns, max_norm: float | NDArray[np.float64]) -> None:
    """Shorten the gradients of each row as `torch.nn.utils.clip_grad_norm_` does, and round their norms to float32."""
    factor = np.minimum(max_norm / (given["overall"] + 1e-6), 1.0)
    for name in ("overall", "trunk", "top", "first", "second"):
        given[name] = (given[name] * factor).astype(np.float32).astype(np.float64)


def evidence(given: Mapping[str, Any], groups: Mapping[str, Group] = GROUPS) -> Evidence:
    """The columns as the signs read them; batches are 10, 20, 30, ..."""
    num_rows = len(given["overall"])
    keys = {"batch_idx": np.arange(1, num_rows + 1) * EVERY, "epoch": np.arange(num_rows) // 50}

    def table_values(*names: str) -> TableValues:
        held = {name: pa.array(list(given[name]), pa.float64()) for name in names if name in given}
        return TableValues(pa.table({**{name: pa.array(key) for name, key in keys.items()}, **held}))

    return Evidence(
        norms=table_values("overall", "trunk", "top", "first", "second"),
        rates=table_values("lr_group_0", "lr_group_1"),
        steps=table_values("loss_scale", "clip_rate", "loss"),
        groups=groups,
    )


def found_in(
    change: Callable[[Columns], None], limits: Thresholds | None = None, groups: Mapping[str, Group] = GROUPS
) -> list[Finding]:
    """The findings in healthy rows after a change."""
    given = columns()
    change(given)
    return listed_findings(evidence(given, groups), limits or Thresholds())


def healthy_in(change: Callable[[Columns], None], groups: Mapping[str, Group] = GROUPS) -> set[str]:
    """The ids of the healthy signs in healthy rows after a change."""
    given = columns()
    change(given)
    run, limits = evidence(given, groups), Thresholds()
    return {one.sign for one in healthy_signs(run, listed_findings(run, limits), limits)}


def signs_in(change: Callable[[Columns], None], limits: Thresholds | None = None) -> set[str]:
    """The ids of the warnings and errors in healthy rows after a change."""
    return {finding.sign for finding in found_in(change, limits) if finding.severity != "info"}
