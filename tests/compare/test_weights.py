"""Weights of two runs by layer: distances against float64 references, matched by name and by batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ava_pipeline.compare.answers import answers
from ava_pipeline.compare.compare import compare_runs
from ava_pipeline.compare.weights import OtherShape, WeightsComparison, layer_distance
from tests.validate.building import RunBuilder

Weights = dict[str, Any]


def snapshots(root: Path, weights: dict[int, Weights], *, suffix: str = ".safetensors", tied: str = "{}") -> Path:
    """A run with snapshots by batch, all of epoch 0."""
    RunBuilder(root=root).write()
    folder = root / "telemetry/weight_snapshots"
    folder.mkdir()
    for batch, tensors in weights.items():
        path = folder / f"weights_epoch0_batch{batch}{suffix}"
        if suffix == ".pt":
            torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
        else:
            save_file(tensors, path, metadata={"tied": tied})
    return root


def compared(a: Path, b: Path) -> WeightsComparison:
    """The weights of two runs."""
    found = compare_runs(a, b).weights
    assert found is not None
    return found


def ones(*shape: int, value: float = 1.0) -> Any:
    """A float32 tensor of equal numbers."""
    return np.full(shape, value, dtype=np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_distances_are_those_of_float64(dtype: Any, scale: float) -> None:
    """L2 distance, relative distance and cosine of two tensors."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(64, 33), scale=scale).astype(dtype) for _ in range(2))
    found = layer_distance("w", a, b)
    one, other = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = np.sqrt(one @ one), np.sqrt(other @ other)
    distance = np.sqrt(((one - other) ** 2).sum())
    assert found.l2_distance == pytest.approx(distance, rel=1e-12)
    assert found.relative == pytest.approx(distance / max(norms), rel=1e-12)
    assert found.cosine == pytest.approx(one @ other / (norms[0] * norms[1]), rel=1e-9)
    assert (found.norm_a, found.norm_b) == pytest.approx(norms, rel=1e-12)
    assert not found.is_equal


def test_distances_at_the_edges() -> None:
    """Zeros, huge numbers, nan, and tensors without numbers."""
    zeros = layer_distance("w", ones(3, value=0), ones(3, value=0))
    assert (zeros.l2_distance, zeros.relative, zeros.cosine, zeros.is_equal) == (0.0, 0.0, None, True)
    half = layer_distance("w", ones(4, value=0), ones(4))
    assert (half.l2_distance, half.relative, half.cosine) == (2.0, 1.0, None)
    huge = layer_distance("w", np.full(4, 1e300), np.full(4, -1e300))
    assert (huge.l2_distance, huge.relative, huge.cosine) == (4e300, 2.0, -1.0)
    with_nan = layer_distance("w", ones(2), np.array([1, np.nan], np.float32))
    assert (with_nan.l2_distance, with_nan.relative, with_nan.is_equal) == (None, None, False)
    assert layer_distance("w", ones(0), ones(0)).l2_distance == 0.0
    assert layer_distance("w", np.int64(3) * np.ones((), np.int64), np.ones((), np.int64)).l2_distance == 2.0


def test_snapshots_are_matched_by_batch_and_layers_by_name(tmp_path: Path) -> None:
    """Never by position: batch 20 is the first of B and the second of A, and the layers come in another order."""
    a = snapshots(tmp_path / "a", {10: {"a": ones(2)}, 20: {"x": ones(4), "y": ones(2, 2)}})
    b = snapshots(tmp_path / "b", {20: {"y": ones(2, 2), "x": ones(4, value=2)}, 30: {"x": ones(4)}})
    found = compared(a, b)
    assert (found.only_a, found.only_b, found.first_unequal) == ((10,), (30,), 20)
    (one,) = found.snapshots
    assert [(layer.name, layer.l2_distance, layer.relative) for layer in one.layers] == [
        ("x", 2.0, 0.5),
        ("y", 0.0, 0.0),
    ]


def test_layers_that_do_not_match_are_named(tmp_path: Path) -> None:
    """Those of another shape, and those that one run alone has."""
    a = snapshots(tmp_path / "a", {10: {"same": ones(2), "head": ones(5, 8), "old": ones(1)}})
    b = snapshots(tmp_path / "b", {10: {"same": ones(2), "head": ones(6, 8), "new\x1b[2J": ones(1)}})
    (one,) = compared(a, b).snapshots
    assert [layer.name for layer in one.layers] == ["same"]
    assert one.other_shape == (OtherShape(name="head", shape_a=(5, 8), shape_b=(6, 8)),)
    assert (one.only_a, one.only_b, one.is_equal) == (("old",), ("new\x1b[2J",), False)
    found = compare_runs(a, b)
    assert found.verdict == "different"
    assert (
        r"Weights: at batch 10, 1 layer of another shape (head), 1 in A alone (old), 1 in B alone (new\x1b[2J)."
        in answers(found)
    )


def test_a_tied_tensor_is_found_under_each_of_its_names(tmp_path: Path) -> None:
    """A run in which the two are no longer tied has both."""
    a = snapshots(tmp_path / "a", {10: {"embed": ones(3)}}, tied='{"head": "embed"}')
    b = snapshots(tmp_path / "b", {10: {"embed": ones(3), "head": ones(3, value=3)}})
    (one,) = compared(a, b).snapshots
    assert (one.only_a, one.only_b) == ((), ())
    assert [(layer.name, layer.is_equal) for layer in one.layers] == [("head", False), ("embed", True)]
    (same,) = compared(a, a).snapshots
    assert [layer.name for layer in same.layers] == ["embed"]


def test_snapshots_of_older_collectors_are_read_with_torch(tmp_path: Path) -> None:
    """Beside those of this package."""
    weights = {10: {"w": ones(4), "count": np.array(3)}}
    a = snapshots(tmp_path / "a", weights, suffix=".pt")
    b = snapshots(tmp_path / "b", {10: {"w": ones(4, value=3), "count": np.array(3)}})
    (one,) = compared(a, b).snapshots
    assert [(layer.name, layer.l2_distance) for layer in one.layers] == [("w", 4.0), ("count", 0.0)]


def test_a_damaged_snapshot_costs_itself(tmp_path: Path) -> None:
    """It is named, and the snapshots of other batches are compared."""
    a = snapshots(tmp_path / "a", {10: {"w": ones(4)}, 20: {"w": ones(4)}})
    b = snapshots(tmp_path / "b", {10: {"w": ones(4)}, 20: {"w": ones(4)}})
    path = b / "telemetry/weight_snapshots/weights_epoch0_batch10.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    found = compare_runs(a, b)
    assert found.weights is not None
    assert [one.batch_idx for one in found.weights.snapshots] == [20]
    (problem,) = found.problems
    assert str(path) in problem.message
    assert found.verdict == "incomplete"
