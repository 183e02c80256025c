"""The labelled trainings behind docs/diagnosis.md run, at tiny size, and the docs hold what they gave."""

from pathlib import Path

import pytest

from ava_pipeline.signs.thresholds import Thresholds
from benchmarks.diagnosis.faults import FAULTS, HEALTHY
from benchmarks.diagnosis.judged import Judged, judge
from benchmarks.diagnosis.labelled import labelled
from benchmarks.diagnosis.table import BEGIN, END, into_docs, table

DOCS = Path(__file__).parents[2] / "docs" / "diagnosis.md"
NUM_STEPS = 40


@pytest.mark.parametrize("name", ["features detached", "frozen layer4", "loss 1e-8×", "healthy"])
def test_a_training_with_its_fault_is_judged(name: str, tmp_path: Path) -> None:
    """Real trainings of 40 steps: what lasts is found, and a healthy one is let be."""
    fault = next(one for one in (*FAULTS, HEALTHY) if one.name == name)
    found = judge(fault, 0, tmp_path, NUM_STEPS)
    assert found.is_found, found


def test_each_kind_is_trained_in_both_halves() -> None:
    """Thresholds are never judged by what they were set on."""
    for fault in (*FAULTS, HEALTHY):
        seeds = [seed % 2 for one, seed in labelled() if one == fault]
        assert seeds.count(0) == seeds.count(1) > 0


def judged(kind: str, *, is_well: bool, signs: tuple[str, ...], is_found: bool) -> Judged:
    """A training of the half held out."""
    return Judged(kind=kind, seed=1, is_held_out=True, is_well=is_well, signs=signs, on_line=(), is_found=is_found)


def test_the_table_counts_what_is_found_missed_and_false(tmp_path: Path) -> None:
    """A golden case of each, and it is put between the marks of a document."""
    found = [
        judged("features detached", is_well=False, signs=("backbone-not-learning",), is_found=True),
        judged("features detached", is_well=False, signs=(), is_found=False),
        judged("healthy", is_well=True, signs=("spike",), is_found=False),
    ]
    told = table(found)
    assert "| features detached | 0 of 0 | 1 of 2 | backbone-not-learning |" in told
    assert "| faults found | - | 1 of 2 (50%) |" in told
    assert "| healthy runs warned of | - | 1 of 1 (100%) |" in told
    assert "| `backbone-not-learning` | 1 | 1 | 0 | 0 |" in told
    assert "| `spike` | 0 | 0 | 1 | 0 |" in told
    document = tmp_path / "docs.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    into_docs(document, found)
    assert document.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\n{told}\n\n{END}\nafter\n"


def test_the_docs_name_every_sign_and_every_threshold() -> None:
    """With the default that the code has."""
    text = DOCS.read_text(encoding="utf-8")
    signs = {sign for fault in FAULTS for sign in fault.signs} | {"frozen", "rising"}
    assert {sign for sign in signs if f"`{sign}`" not in text} == set()
    assert {name for name in Thresholds.model_fields if name not in text} == set()
