"""Which directories a pattern such as `outputs/ava/*` means."""

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
    """Every run directory that a pattern matches, the damaged ones too, by name.

    A run's name is what the pattern's first wildcard and all behind it stand for: `try-1` for `outputs/ava/*`,
    `ava/try-1` for `outputs/*/*`. Where that gives two runs one name, they are named by their paths.

    Args:
        patterns: run directories, or patterns with `*`, `?`, `[…]` and `**`; one of them, or many.

    Raises:
        NotARunError: nothing that matches is a run.
    """
    given: list[Pattern] = [patterns] if isinstance(patterns, str | PathLike) else list(patterns)
    found = {path: name for pattern in given for path, name in _matches(fspath(pattern)) if _may_be_run(path)}
    if not found:
        named = " ".join(str(fspath(pattern)) for pattern in given) or "Nothing"
        raise NotARunError(
            f"{named}: no run there. Give run directories, or a pattern in quotes that matches some, such as "
            "'outputs/ava/*'."
        )
    times = Counter(found.values())
    return {name if times[name] == 1 else str(path): RunLayout(path) for path, name in found.items()}


def _matches(pattern: str) -> Iterator[tuple[Path, str]]:
    """Paths with their names, sorted; a path that is there is never taken for a pattern."""
    path = Path(pattern)
    if path.exists() or not glob.has_magic(pattern):
        yield path, path.name or str(path.resolve())
        return
    base = _folder_before_wildcards(path)
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))):  # noqa: PTH207  # takes absolute patterns too
        yield match, str(match.relative_to(base))


def _folder_before_wildcards(path: Path) -> Path:
    plain = 0
    while not glob.has_magic(path.parts[plain]):
        plain += 1
    return Path(*path.parts[:plain])


def _may_be_run(path: Path) -> bool:
    """A directory that does not let itself be looked into may be one."""
    try:
        return path.is_dir() and is_run(RunLayout(path))
    except OSError:
        return True
