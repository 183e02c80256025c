"""Names of weight snapshots, and the header of a safetensors file, which may come from anywhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import TensorSpec
from safetensors.numpy import save_file

from ava_pipeline.contract import snapshots
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.snapshots import TENSOR_TYPES, read_header, snapshot_file, snapshot_files
from ava_pipeline.errors import DamagedFileError

Header = dict[str, Any]

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def stored(path: Path, header: object, data: bytes = bytes(8), *, length: int | None = None) -> Path:
    """A file with this header and these bytes of tensors; `length` is what it declares as the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_a_header_says_where_each_tensor_is(tmp_path: Path) -> None:
    """As safetensors wrote it, empty tensors and scalars included."""
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 4), np.float32), "c": np.array(7, np.int64)}
    path = tmp_path / "x.safetensors"
    save_file(arrays, path, {"epoch": "0"})
    header = read_header(path)
    assert header.metadata == {"epoch": "0"}
    data = path.read_bytes()
    for name, array in arrays.items():
        tensor = header.tensors[name]
        found = np.frombuffer(data[tensor.begin : tensor.begin + tensor.num_bytes], tensor.type.name)
        np.testing.assert_array_equal(found.reshape(tensor.shape), array)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        ([], "expected a JSON object"),
        (b'{"a": 1, "a": 2}', "a name comes twice"),
        ({"a": A, "__metadata__": {"epoch": 1}}, "expected texts as metadata"),
        ({"a": 1}, "expected a dtype"),
        ({"a": A | {"dtype": "F99"}}, "expected a dtype"),
        ({"a": A | {"dtype": ["F32"]}}, "expected a dtype"),
        ({"a": A | {"shape": [-2]}}, "expected a dtype"),
        ({"a": A | {"shape": [True]}}, "expected a dtype"),
        ({"a": A | {"shape": [2.0]}}, "expected a dtype"),
        ({"a": A | {"shape": [1] * 33}}, "expected a dtype"),
        ({"a": A | {"more": 1}}, "expected a dtype"),
        ({"a": A | {"data_offsets": [0]}}, "needs 8 bytes"),
        ({"a": A | {"shape": [2**62, 2**62]}}, "needs"),
        ({"a": A | {"data_offsets": [4, 12]}}, "begins at byte"),
        ({"a": A, "b": A}, "begins at byte"),
        ({"a": A | {"shape": [1], "data_offsets": [0, 4]}}, "end at byte"),
        ({"a": A | {"shape": [3], "data_offsets": [0, 12]}}, "end at byte"),
        ({}, "end at byte"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: object, complaint: str) -> None:
    """The sentence names the file, and says what was expected."""
    path = stored(tmp_path / "x.safetensors", header)
    with pytest.raises(DamagedFileError, match=complaint) as raised:
        read_header(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("length", [2**63, 2**40, 200])
def test_a_header_longer_than_the_file_is_refused_unread(tmp_path: Path, length: int) -> None:
    """Whatever length the first 8 bytes declare."""
    with pytest.raises(DamagedFileError, match="expected a header of at most"):
        read_header(stored(tmp_path / "x.safetensors", {"a": A}, length=length))


def test_a_huge_header_in_a_sparse_file_is_refused_unread(tmp_path: Path) -> None:
    """A terabyte that takes no place on the disk."""
    path = stored(tmp_path / "x.safetensors", {"a": A}, length=snapshots.MAX_HEADER_BYTES + 1)
    with path.open("rb+") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedFileError, match="expected a header of at most"):
        read_header(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Also one of no bytes."""
    whole = stored(tmp_path / "whole", {"a": A}).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(DamagedFileError):
            read_header(tmp_path / "cut")


@pytest.mark.parametrize("tied", ['{"b": "c"}', '{"a": "a"}', '{"b": 1}', "[]", "{"])
def test_further_names_must_be_those_of_stored_tensors(tmp_path: Path, tied: str) -> None:
    """A name of a tensor that the file does not hold is an error."""
    header = read_header(stored(tmp_path / "x.safetensors", {"a": A, "__metadata__": {"tied": tied}}))
    with pytest.raises(DamagedFileError):
        header.tied()


def test_names_say_batch_and_epoch(tmp_path: Path) -> None:
    """Snapshots come in the order of their batches; other names are left out."""
    layout = RunLayout(tmp_path)
    layout.weight_snapshots.mkdir(parents=True)
    names = ["weights_epoch1_batch1000.safetensors", "weights_epoch0_batch500.pt", "weights_epoch0_batch05.safetensors"]
    for name in [*names, "weights_epoch0_batch5.safetensors.partial", "notes.txt", "weights_epoch0_batch٣.pt"]:
        (layout.weight_snapshots / name).touch()
    assert [file[:2] for file in snapshot_files(layout)] == [(500, 0), (1000, 1)]
    path = layout.weight_snapshot(3, 7)
    assert snapshot_file(path) == (7, 3, path)


def test_every_type_is_one_of_safetensors() -> None:
    """The names by which it is written and read are those of the library."""
    for one in TENSOR_TYPES:
        TensorSpec(dtype=one.name, shape=[1], data_ptr=0, data_len=one.num_bytes)
