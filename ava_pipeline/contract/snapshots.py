"""The files in weight_snapshots/: their names, and the header of a safetensors file, checked before it is believed.

A safetensors file is the length of a header, as 8 bytes in little-endian order, the header, which is JSON, and the
bytes of the tensors, without gaps.

Source: https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ava_pipeline.contract.columns import shown
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import DamagedFileError

SNAPSHOT_SUFFIX: Final = ".safetensors"
TIED_KEY: Final = (
    "tied"  # in the metadata: JSON, the name of a tensor that is not stored -> the name it is stored under
)
MAX_HEADER_BYTES = 16 * 2**20
MAX_DIMENSIONS = 32

_LENGTH_BYTES = 8
_SNAPSHOT_NAME = re.compile(
    r"weights_epoch(?P<epoch>0|[1-9][0-9]{0,17})_batch(?P<batch_idx>0|[1-9][0-9]{0,17})\.(?:safetensors|pt)"
)


class TensorType(NamedTuple):
    """The type of a tensor's numbers: its name in a safetensors header, in torch, and the bytes of one number."""

    code: str
    name: str
    num_bytes: int


TENSOR_TYPES = (
    TensorType("F64", "float64", 8),
    TensorType("F32", "float32", 4),
    TensorType("F16", "float16", 2),
    TensorType("BF16", "bfloat16", 2),
    TensorType("F8_E4M3", "float8_e4m3fn", 1),
    TensorType("F8_E5M2", "float8_e5m2", 1),
    TensorType("I64", "int64", 8),
    TensorType("I32", "int32", 4),
    TensorType("I16", "int16", 2),
    TensorType("I8", "int8", 1),
    TensorType("U64", "uint64", 8),
    TensorType("U32", "uint32", 4),
    TensorType("U16", "uint16", 2),
    TensorType("U8", "uint8", 1),
    TensorType("C64", "complex64", 8),
    TensorType("BOOL", "bool", 1),
)
TYPES_BY_NAME = {one.name: one for one in TENSOR_TYPES}
_TYPES_BY_CODE = {one.code: one for one in TENSOR_TYPES}


class SnapshotFile(NamedTuple):
    """The weights that a batch was computed with; `batch_idx` is 1-based, `epoch` 0-based."""

    batch_idx: int
    epoch: int
    path: Path

    @property
    def is_safetensors(self) -> bool:
        """Whether this package wrote it; older collectors saved `.pt` files."""
        return self.path.suffix == SNAPSHOT_SUFFIX


def snapshot_file(path: Path) -> SnapshotFile | None:
    """Read batch and epoch from a file's name; None if it is not `weights_epoch<epoch>_batch<batch>.safetensors`.

    Example:
        >>> snapshot_file(Path("weights_epoch0_batch500.safetensors"))[:2]
        (500, 0)
    """
    match = _SNAPSHOT_NAME.fullmatch(path.name)
    return None if match is None else SnapshotFile(int(match["batch_idx"]), int(match["epoch"]), path)


def snapshot_files(layout: RunLayout) -> list[SnapshotFile]:
    """List a run's weight snapshots by batch; files with other names are left out."""
    return sorted(file for path in layout.weight_snapshots.glob("*") if (file := snapshot_file(path)) is not None)


class StoredTensor(NamedTuple):
    """Where a tensor is in a file: its first byte, counted from the beginning of the file, and its number of bytes."""

    type: TensorType
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """The tensors of a file by name, in the order of their bytes, and the texts that its writer added."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    def tied(self) -> dict[str, str]:
        """Names of tensors that are not stored -> the name under which the same tensor is stored.

        Raise DamagedFileError if the metadata hold something else.
        """
        text = self.metadata.get(TIED_KEY, "{}")
        found = _json(text)
        if not isinstance(found, dict) or not all(
            isinstance(kept, str) and kept in self.tensors and name not in self.tensors for name, kept in found.items()
        ):
            raise DamagedFileError(f"its metadata {TIED_KEY!r} do not name tensors of the file: {shown(text)}")
        return found


def read_header(path: Path) -> SnapshotHeader:
    """Read what a safetensors file holds. No more than `MAX_HEADER_BYTES` of it are read into memory.

    Raise DamagedFileError if the header is damaged or does not fit the size of the file, OSError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if file_bytes < _LENGTH_BYTES or length > min(file_bytes - _LENGTH_BYTES, MAX_HEADER_BYTES):
                raise DamagedFileError(  # noqa: TRY301  # every sentence gets the path in one place
                    f"expected a header of at most {MAX_HEADER_BYTES} bytes that fits into the file, which has "
                    f"{file_bytes}; the file declares one of {length} bytes"
                )
            header = _json(file.read(length))
        return _checked(header, begin=_LENGTH_BYTES + length, end=file_bytes)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{path} is not a safetensors file: {error}. Restore it from a backup, or move it away."
        ) from error


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # what Python's reader raises for text that is not JSON
        raise DamagedFileError(f"expected JSON, got {shown(text[:80])} ({type(error).__name__})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are unique: of two tensors with one name, JSON would keep the second in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DamagedFileError("a name comes twice in its header")
    return found


def _checked(header: Any, *, begin: int, end: int) -> SnapshotHeader:
    """The tensors of a header if they fill the bytes from `begin` to `end` of the file without gaps."""
    if not isinstance(header, dict):
        raise DamagedFileError(f"expected a JSON object, got {shown(header)}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise DamagedFileError(f"expected texts as metadata, got {shown(metadata)}")
    tensors = dict(sorted(_tensors(header, begin), key=lambda item: (item[1].begin, item[1].num_bytes)))
    place = begin
    for name, tensor in tensors.items():
        if tensor.begin != place:
            raise DamagedFileError(f"tensor {shown(name)} begins at byte {tensor.begin}, expected {place}")
        place += tensor.num_bytes
    if place != end:
        raise DamagedFileError(f"its tensors end at byte {place}, and the file at byte {end}")
    return SnapshotHeader(tensors, metadata)


def _tensors(header: Mapping[str, Any], begin: int) -> Iterator[tuple[str, StoredTensor]]:
    for name, entry in header.items():
        fields = entry if isinstance(entry, dict) else {}
        code, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
        tensor_type = _TYPES_BY_CODE.get(code) if isinstance(code, str) else None
        is_known = tensor_type is not None and len(fields) == 3  # noqa: PLR2004  # the three keys
        if tensor_type is None or not (is_known and _are_sizes(shape, MAX_DIMENSIONS) and _are_sizes(offsets, 2)):
            known = ", ".join(_TYPES_BY_CODE)
            raise DamagedFileError(
                f"expected a dtype ({known}), a shape of at most {MAX_DIMENSIONS} sizes and two offsets, "
                f"got {shown(entry)} for tensor {shown(name)}"
            )
        num_bytes = math.prod(shape) * tensor_type.num_bytes
        if len(offsets) != 2 or offsets[1] - offsets[0] != num_bytes:  # noqa: PLR2004  # begin and end
            raise DamagedFileError(
                f"tensor {shown(name)} needs {num_bytes} bytes, and its offsets are {shown(offsets)}"
            )
        yield name, StoredTensor(tensor_type, tuple(shape), begin + offsets[0], num_bytes)


def _are_sizes(value: object, at_most: int) -> bool:
    return isinstance(value, list) and len(value) <= at_most and all(type(one) is int and one >= 0 for one in value)
