"""per_layer_stats of two runs: which layer differs, from which batch on, and how much at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ava_pipeline.compare.answers import answers
from ava_pipeline.compare.compare import Comparison, compare_runs
from ava_pipeline.compare.layers import LayersComparison
from ava_pipeline.compare.values import Pair
from ava_pipeline.contract.builtin_tables import PER_LAYER_STATS
from ava_pipeline.contract.tables import RunTable
from tests.compare.recorded_runs import add_table
from tests.validate.building import RunBuilder

Norms = Mapping[str, Sequence[float | None]]  # layer -> L2 norm at batches 10, 20, 30

DECLARED = RunTable.of(PER_LAYER_STATS)
NORMS: Norms = {"conv.weight": (1.0, 1.0, 1.0), "fc.weight": (2.0, 2.0, 2.0), "fc.bias": (3.0, 3.0, 3.0)}


def compared(tmp_path: Path, a: Norms, b: Norms, *, sizes_b: Mapping[str, int] | None = None) -> Comparison:
    """Two runs that are equal but for their layers."""
    for name, norms, sizes in (("a", a, {}), ("b", b, sizes_b or {})):
        RunBuilder(root=tmp_path / name).write()
        rows = [
            (batch, layer, of_batch[place])
            for place, batch in enumerate((10, 20, 30))
            for layer, of_batch in norms.items()
        ]
        values = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "grad_norm": 1.0}
        columns: dict[str, Sequence[object]] = {
            "batch_idx": [batch for batch, _, _ in rows],
            "epoch": [0] * len(rows),
            "layer_name": [layer for _, layer, _ in rows],
            "l2_norm": [norm for _, _, norm in rows],
            "num_params": [sizes.get(layer, 4) for _, layer, _ in rows],
            **{column: [value] * len(rows) for column, value in values.items()},
        }
        add_table(tmp_path / name, DECLARED, columns)
    return compare_runs(tmp_path / "a", tmp_path / "b")


def layers_of(found: Comparison) -> LayersComparison:
    """The layers, which both runs have."""
    assert found.layers is not None
    return found.layers


def test_equal_layers_have_no_difference(tmp_path: Path) -> None:
    """The runs are equal."""
    found = compared(tmp_path, NORMS, NORMS)
    assert found.verdict == "equal"
    assert {layer.first_unequal for layer in layers_of(found).layers} == {None}
    assert "Layers: the statistics of 3 layers are equal bit for bit." in answers(found)


def test_the_most_different_layer_comes_first(tmp_path: Path) -> None:
    """With its first batch, and its figures at the last one; where there are no snapshots, it is the answer."""
    found = compared(tmp_path, NORMS, {**NORMS, "fc.weight": (2.0, 3.0, 4.0), "conv.weight": (1.0, 1.0, 1.25)})
    first, second, third = layers_of(found).layers
    assert (first.name, first.first_unequal, first.batch_idx) == ("fc.weight", 20, 30)
    assert (first.l2_norm, first.distance) == (Pair(2.0, 4.0), 0.5)
    assert (second.name, second.first_unequal) == ("conv.weight", 30)
    assert second.distance == pytest.approx(0.2)
    assert (third.name, third.first_unequal, third.distance) == ("fc.bias", None, 0.0)
    assert (
        "Layers: 2 of 3 layers differ, from batch 20 on; at batch 30, most of all fc.weight "
        "(relative distance 0.5 of norm or spread)." in answers(found)
    )


def test_a_norm_that_was_not_measured_is_unknown(tmp_path: Path) -> None:
    """It is unequal, its distance is that of what was measured, and null equals null."""
    a = {**NORMS, "fc.bias": (None, None, None)}
    found = layers_of(compared(tmp_path, a, {**NORMS, "fc.bias": (None, 3.0, 3.0)}))
    (bias,) = [layer for layer in found.layers if layer.name == "fc.bias"]
    assert (bias.first_unequal, bias.l2_norm, bias.distance) == (20, Pair(None, 3.0), 0.0)


def test_layers_that_do_not_match_are_named(tmp_path: Path) -> None:
    """By name, and those of another size."""
    a = {name: norms for name, norms in NORMS.items() if name != "fc.bias"}
    b = {name: norms for name, norms in NORMS.items() if name != "conv.weight"}
    found = compared(tmp_path, a, b, sizes_b={"fc.weight": 8})
    layers = layers_of(found)
    assert (layers.only_a, layers.only_b) == (("conv.weight",), ("fc.bias",))
    assert [(layer.name, layer.num_params) for layer in layers.layers] == [("fc.weight", Pair(4, 8))]
    assert found.verdict == "different"
    assert (
        "Layers: 1 layer of another size (fc.weight), 1 in A alone (conv.weight), 1 in B alone (fc.bias)."
        in answers(found)
    )
