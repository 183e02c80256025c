"""Weight snapshots of a run, read as NumPy arrays without torch; an older collector's `.pt` files need it."""

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.snapshots import SNAPSHOT_SUFFIX, StoredTensor, read_header, snapshot_files
from ava_pipeline.contract.untrusted import MAX_TABLE_BYTES, check_zip
from ava_pipeline.errors import DamagedFileError, MisuseError, in_words, require_extra

Array = NDArray[Any]

# Where checkpoints that hold more than weights keep them.
_STATE_KEYS = ("model_state_dict", "state_dict", "model", "weights")


class WeightSnapshot:
    """The weights that one batch was computed with.

    Floats of 16 and 8 bits are read as float32, which holds each of them exactly; other numbers as they are.

    Args:
        path: the file.
        batch_idx: 1-based.
        epoch: 0-based.

    Attributes:
        path: as given.
        batch_idx: as given.
        epoch: as given.

    Example:
        >>> first, *_, last = open_run("outputs/ava/my_run").weight_snapshots()  # doctest: +SKIP
        >>> before = dict(first.tensors(["fc.weight"]))  # doctest: +SKIP
    """

    def __init__(self, path: Path, *, batch_idx: int, epoch: int) -> None:
        self.path = path
        self.batch_idx = batch_idx
        self.epoch = epoch

    def __repr__(self) -> str:
        return f"WeightSnapshot({self.path.name!r}, batch_idx={self.batch_idx}, epoch={self.epoch})"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by its name in the model; one with several names has the first.

        Raises:
            DamagedFileError: the file is damaged.
            ConfigError: it is a `.pt` file, and torch is not installed.
        """
        if self.path.suffix == SNAPSHOT_SUFFIX:
            return {name: tensor.shape for name, tensor in read_header(self.path).tensors.items()}
        return {name: tuple(tensor.shape) for name, tensor in _load_pt(self.path).items()}

    def tied(self) -> dict[str, str]:
        """Further names of tensors -> the name under which the same tensor is read. Raises what `shapes` raises."""
        if self.path.suffix != SNAPSHOT_SUFFIX:
            return {}
        try:
            return read_header(self.path).tied()
        except DamagedFileError as error:
            raise DamagedFileError(f"{self.path}: {error}. Restore it from a backup.") from error

    def tensors(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Array]]:
        """Read the tensors one by one, so that no more than one is in memory; of a `.pt` file, all are.

        Args:
            names: the tensors to read; all of them if left out.

        Raises:
            MisuseError: the file has no such tensor.
            DamagedFileError: the file is damaged, or a tensor has more than 8 GiB.
            ConfigError: it is a `.pt` file, and torch is not installed.
        """
        if self.path.suffix == SNAPSHOT_SUFFIX:
            stored = read_header(self.path).tensors
            with self.path.open("rb") as file:
                for name in _chosen(stored, names, self.path):
                    yield name, _read(file, stored[name], f"{self.path}: tensor {name!r}")
            return
        loaded = _load_pt(self.path)
        for name in _chosen(loaded, names, self.path):
            yield name, _from_torch(loaded[name])


def read_snapshots(layout: RunLayout) -> list[WeightSnapshot]:
    """The weight snapshots of a run by batch; empty if it has none."""
    return [
        WeightSnapshot(file.path, batch_idx=file.batch_idx, epoch=file.epoch)
        for file in snapshot_files(layout)
        if file.path.is_file()
    ]


def _chosen(stored: Mapping[str, object], names: Collection[str] | None, path: Path) -> list[str]:
    unknown = [name for name in names or () if name not in stored]
    if unknown:
        raise MisuseError(f"{path} has no tensor {unknown[0]!r}: give names that shapes() has.")
    return [name for name in stored if names is None or name in names]


def _read(file: Any, tensor: StoredTensor, what: str) -> Array:
    if tensor.num_bytes > MAX_TABLE_BYTES:
        raise DamagedFileError(f"{what} has {tensor.num_bytes} bytes; at most {MAX_TABLE_BYTES} are read into memory.")
    file.seek(tensor.begin)
    data = file.read(tensor.num_bytes)
    if len(data) != tensor.num_bytes:
        raise DamagedFileError(f"{what} ends after {len(data)} of {tensor.num_bytes} bytes. Restore it from a backup.")
    return _numbers(data, tensor).reshape(tensor.shape)


def _numbers(data: bytes, tensor: StoredTensor) -> Array:
    name = tensor.type.name
    if name == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if name.startswith("float8"):
        table = _float8_e4m3fn() if name == "float8_e4m3fn" else _float8_e5m2()
        return table[np.frombuffer(data, np.uint8)]
    found = np.frombuffer(data, np.dtype(name).newbyteorder("<")).astype(np.dtype(name))
    return found.astype(np.float32) if name == "float16" else found


@cache
def _float8_e5m2() -> NDArray[np.float32]:
    """The value of each byte: the upper half of a float16."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


@cache
def _float8_e4m3fn() -> NDArray[np.float32]:
    """The value of each byte: a sign, 4 bits of exponent with a bias of 7, 3 of mantissa; no inf, and one nan per sign.

    Source: https://arxiv.org/abs/2209.05433, table 1
    """
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    values[(codes & 127) == 127] = np.nan  # noqa: PLR2004  # every bit but the sign
    return np.where(codes < 128, values, -values).astype(np.float32)  # noqa: PLR2004  # the sign


def _load_pt(path: Path) -> dict[str, Any]:
    """The tensors of a file that torch saved; nothing in it is run. Raise DamagedFileError if it holds something else."""
    require_extra("A weight snapshot of an older collector, a .pt file,", "train", "torch")
    torch: Any = import_module("torch")
    try:
        check_zip(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise many types
        raise DamagedFileError(f"{path} cannot be read: {in_words(error)} Move it away.") from error
    inner = next((found[key] for key in _STATE_KEYS if key in found), found) if isinstance(found, dict) else {}
    named = inner.items() if isinstance(inner, dict) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, torch.Tensor)}
    if not tensors:
        raise DamagedFileError(f"{path} holds no weights: expected a mapping name -> tensor. Move it away.")
    return tensors


def _from_torch(tensor: Any) -> Array:
    is_small_float = tensor.is_floating_point() and tensor.element_size() < np.dtype(np.float32).itemsize
    array: Array = (tensor.detach().float() if is_small_float else tensor.detach()).numpy()
    return array
