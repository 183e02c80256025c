"""Read what an offline run of W&B has stored: a log of records in blocks, as LevelDB writes it."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILE_HEADER_BYTES = 7
_BLOCK_BYTES = 32 * 1024
_RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _LAST = 1, 4
_TIMEOUT_S, _POLL_S = 60.0, 0.02


def records(folder: Path) -> list[Any]:
    """Every record of the only run below a folder, which is finished: its service still writes for a moment."""
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415  # the tests skip where it is not installed

    (path,) = folder.rglob("*.wandb")
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s:
        found = [Record.FromString(data) for data in _payloads(path.read_bytes())]
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(_POLL_S)
    raise TimeoutError(f"{path} is not complete after {_TIMEOUT_S} s")


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows that the run logged, without W&B's own values other than `_step`."""
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.HasField("history")
    ]
    return [{name: value for name, value in row.items() if name[0] != "_" or name == "_step"} for row in rows]


def _payloads(data: bytes) -> Iterator[bytes]:
    place, parts = _FILE_HEADER_BYTES, b""
    while place + _RECORD_HEADER.size <= len(data):
        room = _BLOCK_BYTES - place % _BLOCK_BYTES
        if room < _RECORD_HEADER.size:
            place += room
            continue
        _, length, kind = _RECORD_HEADER.unpack_from(data, place)
        place += _RECORD_HEADER.size
        parts += data[place : place + length]
        place += length
        if kind in {_FULL, _LAST}:
            yield parts
            parts = b""
