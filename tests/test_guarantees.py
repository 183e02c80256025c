"""docs/guarantees.md promises nothing without a test, and names no test that is not there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_every_test_named_is_there(path: str, name: str) -> None:
    """A test that was renamed is renamed there too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):  # Hypothesis' state machines are given a name
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert name in found


def test_every_promise_names_a_test() -> None:
    """A MUST without one is a wish."""
    promises = re.split(r"\n(?= *(?:\d+\.|-) )", TEXT.partition("## Training")[2])
    wishes = [one for one in promises if "MUST" in one and "`tests/" not in one]
    assert len(promises) > 20
    assert not wishes
