"""Whose rows a file holds: for each, Σ attempt.rows - Σ attempt.set_aside is what is in it."""

from collections.abc import Mapping, Sequence

from ava_pipeline.contract.manifest import Attempt


def rows_of_last(attempts: Sequence[Attempt], counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that the last attempt wrote, where it was killed before it could count them all.

    Args:
        attempts: every attempt so far.
        counts: rows in each file now.

    Returns:
        By file name; never fewer than it counted itself.
    """
    *before, last = attempts
    aside = {name: sum(one.set_aside.get(name, 0) for one in attempts) for name in counts}
    others = {name: sum(one.rows.get(name, 0) for one in before) for name in counts}
    found = {name: count + aside[name] - others[name] for name, count in counts.items()}
    return {name: max(found.get(name, 0), last.rows.get(name, 0)) for name in {**last.rows, **found}}


def missing_rows(attempts: Sequence[Attempt], counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that attempts wrote and the files no longer hold.

    Args:
        attempts: every attempt so far.
        counts: rows in each file now.

    Returns:
        By file name, where it is not 0.
    """
    expected: dict[str, int] = {}
    for one in attempts:
        for name in {**one.rows, **one.set_aside}:
            expected[name] = expected.get(name, 0) + one.rows.get(name, 0) - one.set_aside.get(name, 0)
    missing = {name: num_rows - counts.get(name, 0) for name, num_rows in expected.items()}
    return {name: num_rows for name, num_rows in missing.items() if num_rows > 0}
