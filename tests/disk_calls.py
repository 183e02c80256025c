"""What reaches the disk, in order: the calls that write, sync and rename, each with the name concerned."""

import os
from pathlib import Path

import pytest

Calls = list[tuple[str, str]]


def recorded(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls from now on, of this process: `("write" | "sync" | "rename", name)`."""
    calls: Calls = []
    fsync, pwrite, replace = os.fsync, os.pwrite, os.replace

    def sync(descriptor: int) -> None:
        calls.append(("sync", _name(descriptor)))
        fsync(descriptor)

    def write(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(("write", _name(descriptor)))
        return pwrite(descriptor, data, offset)

    def rename(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "replace", rename)
    return calls


def _name(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name
