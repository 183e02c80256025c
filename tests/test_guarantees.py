"""Each promise in docs/guarantees.md and each threat in contract/untrusted.py names a test, and the test exists."""

import ast
import re
from pathlib import Path

import pytest

from ava_pipeline.contract import untrusted

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
THREATS = str(untrusted.__doc__)
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", TEXT + THREATS)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_every_test_named_exists(path: str, name: str) -> None:
    """A test that is renamed is renamed there too."""
    defined: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):  # a state machine of Hypothesis
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert name in defined


def test_every_promise_names_a_test() -> None:
    """A MUST without a test is only a wish."""
    promises = re.split(r"\n(?= *(?:\d+\.|-) )", TEXT.partition("## Training")[2])
    assert len(promises) > 20
    assert not [promise for promise in promises if "MUST" in promise and "`tests/" not in promise]


def test_every_threat_has_a_check_and_a_test() -> None:
    """The list of threats is complete in itself."""
    threats = THREATS.split("threat: ")[1:]
    assert len(threats) > 5
    assert not [threat for threat in threats if "check:  " not in threat or "test:   tests/" not in threat]
