"""Find run directories by patterns such as `outputs/ava/*`."""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from os import PathLike, fspath
from pathlib import Path

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import NotARunError
from ava_pipeline.read.run import is_run

Pattern = str | PathLike[str]


def find_runs(patterns: Pattern | Iterable[Pattern]) -> dict[str, RunLayout]:
    """Find every run directory that a pattern with `*`, `?`, `[…]` or `**` matches, damaged ones included, by name.

    A run's name is the part of its path from the pattern's first wildcard on: `try-1` for `outputs/ava/*`, `ava/try-1`
    for `outputs/*/*`. Runs that would have the same name are named by their paths. Raise NotARunError if nothing that
    matches is a run.
    """
    given: list[Pattern] = [patterns] if isinstance(patterns, str | PathLike) else list(patterns)
    found = {path: name for pattern in given for path, name in _matches(fspath(pattern)) if _may_be_run(path)}
    if not found:
        listed = " ".join(str(fspath(pattern)) for pattern in given) or "no pattern given"
        raise NotARunError(
            f"{listed}: no run found. Give run directories, or a pattern in quotes that matches them, such as "
            "'outputs/ava/*'."
        )
    counts = Counter(found.values())
    return {name if counts[name] == 1 else str(path): RunLayout(path) for path, name in found.items()}


def _matches(pattern: str) -> Iterator[tuple[Path, str]]:
    """Paths with their names, sorted; a path that exists is not treated as a pattern."""
    path = Path(pattern)
    if path.exists() or not glob.has_magic(pattern):
        yield path, path.name or str(path.resolve())
        return
    base = _folder_before_wildcards(path)
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))):  # noqa: PTH207  # accepts absolute patterns
        yield match, str(match.relative_to(base))


def _folder_before_wildcards(path: Path) -> Path:
    num_plain = 0
    while not glob.has_magic(path.parts[num_plain]):
        num_plain += 1
    return Path(*path.parts[:num_plain])


def _may_be_run(path: Path) -> bool:
    """Whether the path is a run, or a directory that cannot be read and so might be one."""
    try:
        return path.is_dir() and is_run(RunLayout(path))
    except OSError:
        return True
