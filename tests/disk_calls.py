"""Records the calls that write, sync and rename files, in order."""

import os
from pathlib import Path

import pytest

Calls = list[tuple[str, str]]


def recorded(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Record the calls of this process from now on: `("write" | "sync" | "rename", file name)`."""
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
