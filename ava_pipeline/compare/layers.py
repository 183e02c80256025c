"""per_layer_stats of two runs, layer by layer: for weights of which no snapshots exist."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ava_pipeline.compare.columns import side_of, unequal
from ava_pipeline.compare.rows import Matched, match_rows
from ava_pipeline.compare.values import Pair
from ava_pipeline.contract.arrays import Bools, Integers, take_rows

LAYER = "layer_name"
SIZE = "num_params"
STATS = ("l2_norm", "mean", "std")
LAYER_COLUMNS = ("batch_idx", LAYER, *STATS, SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerComparison:
    """A parameter tensor in the last batch that both runs recorded of it.

    Attributes:
        name: the parameter's name.
        batch_idx: that batch.
        first_unequal: the first batch at which a statistic is not equal bit for bit; None if there is none.
        l2_norm: the L2 norm in each run.
        mean: the mean.
        std: the standard deviation.
        num_params: how many numbers the tensor has, where that differs; else None.
    """

    name: str
    batch_idx: int
    first_unequal: int | None
    l2_norm: Pair
    mean: Pair
    std: Pair
    num_params: Pair | None

    @property
    def distance(self) -> float | None:
        """The largest relative distance of norm and standard deviation; None if neither can be compared."""
        found = [one for one in (self.l2_norm.relative, self.std.relative) if one is not None]
        return max(found, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersComparison:
    """The layers of two runs, matched by batch and name.

    Attributes:
        first_batch: the first shared batch.
        last_batch: the last shared batch.
        layers: the layers of both runs, most different first; those whose statistics cannot be compared come first.
        only_a: layers that only run A has.
        only_b: layers that only run B has.
    """

    first_batch: int | None
    last_batch: int | None
    layers: tuple[LayerComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_layers(a: pa.Table, b: pa.Table) -> LayersComparison:
    """Compare the columns `LAYER_COLUMNS` of per_layer_stats of two runs."""
    matched = match_rows(a, b, (LAYER,))
    rows_a, rows_b = take_rows(a, matched.in_a), take_rows(b, matched.in_b)
    is_unequal = np.zeros(matched.num_rows, np.bool_)
    for name in (*STATS, SIZE):
        one, other = (side_of(rows.column(name)) for rows in (rows_a, rows_b))
        is_unequal |= unequal(one, other)
    names_a, names_b = ({str(name) for name in rows.column(LAYER).unique().to_pylist()} for rows in (a, b))
    layers = _layers(matched, rows_a, rows_b, is_unequal)
    return LayersComparison(
        first_batch=int(matched.batches[0]) if matched.num_rows else None,
        last_batch=int(matched.batches[-1]) if matched.num_rows else None,
        layers=tuple(sorted(layers, key=_most_different_first)),
        only_a=tuple(sorted(names_a - names_b)),
        only_b=tuple(sorted(names_b - names_a)),
    )


def _layers(matched: Matched, a: pa.Table, b: pa.Table, is_unequal: Bools) -> list[LayerComparison]:
    keys, last_from_end = np.unique(matched.keys[::-1], return_index=True)
    last: Integers = matched.num_rows - 1 - last_from_end
    differing = np.flatnonzero(is_unequal)
    keys_that_differ, first = np.unique(matched.keys[differing], return_index=True)
    first_unequal = dict(zip(keys_that_differ.tolist(), matched.batches[differing[first]].tolist(), strict=True))
    last_a, last_b = take_rows(a, last).to_pydict(), take_rows(b, last).to_pydict()
    return [
        LayerComparison(
            name=matched.names[int(key)][0],
            batch_idx=int(matched.batches[last[place]]),
            first_unequal=first_unequal.get(int(key)),
            **{name: Pair(last_a[name][place], last_b[name][place]) for name in STATS},
            num_params=_if_other(Pair(last_a[SIZE][place], last_b[SIZE][place])),
        )
        for place, key in enumerate(keys)
    ]


def _if_other(sizes: Pair) -> Pair | None:
    return sizes if sizes.a != sizes.b else None


def _most_different_first(layer: LayerComparison) -> tuple[bool, float, str]:
    is_unknown = layer.first_unequal is not None and layer.distance is None
    return not is_unknown, -(layer.distance or 0.0), layer.name
