"""Weight snapshots are read as safetensors reads them, and without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ava_pipeline.contract import untrusted
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.snapshots import TENSOR_TYPES
from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.read import snapshots
from ava_pipeline.read.snapshots import WeightSnapshot, read_snapshots


def snapshot_of(path: Path) -> WeightSnapshot:
    """A file as a snapshot."""
    return WeightSnapshot(path, batch_idx=1, epoch=0)


def all_bits(dtype: torch.dtype) -> torch.Tensor:
    """Every value of a type of 8 or 16 bits, and random bits of a wider one; of a bool both."""
    if dtype is torch.bool:
        return torch.tensor([True, False])
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    if dtype.itemsize == 2:
        return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    random = torch.randint(0, 256, (1000 * dtype.itemsize,), generator=torch.Generator().manual_seed(0))
    return random.to(torch.uint8).view(dtype)


@pytest.mark.parametrize("name", [one.name for one in TENSOR_TYPES])
def test_every_type_is_read_as_torch_reads_it(tmp_path: Path, name: str) -> None:
    """Every bit pattern of small types, nan, inf and subnormal numbers among them."""
    tensor = all_bits(getattr(torch, name)).reshape(2, -1)
    save_file(
        {"w": tensor, "empty": tensor[:0].clone(), "one": tensor.flatten()[:1].reshape(()).clone()},
        tmp_path / "x.safetensors",
    )
    read = dict(snapshot_of(tmp_path / "x.safetensors").tensors())
    for key, stored in load_file(tmp_path / "x.safetensors").items():
        is_small = stored.is_floating_point() and stored.itemsize < 4
        expected = (stored.float() if is_small else stored).numpy()
        assert read[key].dtype == expected.dtype
        np.testing.assert_array_equal(read[key], expected, strict=True)


def test_single_tensors_are_read(tmp_path: Path) -> None:
    """In the file's order; a name that it does not have is refused."""
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "x.safetensors")
    snapshot = snapshot_of(tmp_path / "x.safetensors")
    assert snapshot.shapes() == {"a": (2,), "b": (3,)}
    assert [name for name, _ in snapshot.tensors(["b"])] == ["b"]
    with pytest.raises(MisuseError, match="no tensor 'c'"):
        dict(snapshot.tensors(["c"]))


def test_a_tensor_too_large_for_the_memory_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before memory is taken for it."""
    save_file({"a": torch.ones(200)}, tmp_path / "x.safetensors")
    monkeypatch.setattr(snapshots, "MAX_TABLE_BYTES", 799)
    assert untrusted.MAX_TABLE_BYTES > 799
    with pytest.raises(DamagedFileError, match="has 800 bytes; at most 799"):
        dict(snapshot_of(tmp_path / "x.safetensors").tensors())


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "model_state_dict": state}])
def test_pt_files_of_older_collectors_are_read(tmp_path: Path, wrap: object) -> None:
    """As they are, or inside a checkpoint; they are listed by batch, not by name."""
    layout = RunLayout(tmp_path)
    layout.weight_snapshots.mkdir(parents=True)
    state = {"w": torch.tensor([0.1, -2.0], dtype=torch.bfloat16), "n": torch.tensor(3)}
    for batch_idx in (1000, 500):
        torch.save(wrap(state), layout.weight_snapshots / f"weights_epoch0_batch{batch_idx}.pt")  # type: ignore[operator]  # one of the above
    first, second = read_snapshots(layout)
    assert (first.batch_idx, second.batch_idx) == (500, 1000)
    assert first.shapes() == {"w": (2,), "n": ()}
    read = dict(first.tensors())
    np.testing.assert_array_equal(read["w"], state["w"].float().numpy(), strict=True)
    assert read["n"] == 3


def test_a_pt_file_runs_no_code(tmp_path: Path) -> None:
    """An object that would be made when it is loaded is refused."""
    torch.save({"w": Path("x")}, tmp_path / "weights_epoch0_batch1.pt")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        dict(snapshot_of(tmp_path / "weights_epoch0_batch1.pt").tensors())
    torch.save({"epoch": 3}, tmp_path / "weights_epoch0_batch2.pt")
    with pytest.raises(DamagedFileError, match="holds no weights"):
        dict(snapshot_of(tmp_path / "weights_epoch0_batch2.pt").tensors())


def test_reading_loads_neither_torch_nor_safetensors(tmp_path: Path) -> None:
    """In a fresh interpreter."""
    layout = RunLayout(tmp_path)
    layout.weight_snapshots.mkdir(parents=True)
    save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, layout.weight_snapshot(0, 1))
    layout.csv("steps").write_text("batch_idx\n")
    statement = (
        "import sys; from ava_pipeline import open_run; (one,) = open_run(sys.argv[1]).weight_snapshots();"
        "print(dict(one.tensors())['a'].tolist(), 'torch' in sys.modules, 'safetensors' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", statement, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1.0, 1.0] False False"
