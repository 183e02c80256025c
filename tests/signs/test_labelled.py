"""The labelled trainings behind docs/diagnosis.md run, at tiny size, and the docs hold what they gave."""

from pathlib import Path

import pytest

from ava_pipeline import open_run
from ava_pipeline.contract.events import Event
from ava_pipeline.signs.thresholds import Thresholds
from benchmarks.diagnosis.faults import FAULTS, HEALTHY, Fault
from benchmarks.diagnosis.judged import Judged, judge, judged_run
from benchmarks.diagnosis.labelled import ALL, labelled
from benchmarks.diagnosis.network import batch_of
from benchmarks.diagnosis.settings import AT, draw
from benchmarks.diagnosis.table import BEGIN, END, into_docs, table
from benchmarks.diagnosis.training import train
from tests.validate.building import RunBuilder

DOCS = Path(__file__).parents[2] / "docs" / "diagnosis.md"
NUM_STEPS = 40


@pytest.mark.parametrize("name", ["features detached", "frozen layer4", "loss 1e-8×", "healthy"])
def test_a_training_with_its_fault_is_judged(name: str, tmp_path: Path) -> None:
    """Real trainings of 40 steps: what lasts is found, and a healthy one is let be."""
    fault = next(one for one in (*FAULTS, HEALTHY) if one.name == name)
    found = judge(fault, 0, tmp_path, NUM_STEPS)
    assert found.is_found, found


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_every_kind_trains(fault: Fault, tmp_path: Path) -> None:
    """A few steps of each give rows that can be read, and a poisoned batch can be made."""
    train(fault, draw(fault.name, 0, 3), tmp_path / "run")
    assert 0 < len(open_run(tmp_path / "run").gradient_norms()) <= 3
    setting = fault.setting(draw(fault.name, 0))
    given = batch_of(setting, AT)
    images, truth = fault.batch(*given, AT, setting)
    assert (images.shape, truth.shape) == (given[0].shape, given[1].shape)


def test_a_poisoned_batch_counts_as_found_only_with_its_samples(tmp_path: Path) -> None:
    """Afterwards and while training."""
    fault = next(one for one in FAULTS if one.name.startswith("poisoned batch: votes"))
    for samples, is_found in (("image-160-0, image-160-1", True), ("image-7-0", False), (None, False)):
        run = poisoned(tmp_path / str(samples), samples)
        found = judged_run(fault, 0, run)
        assert (found.is_found, found.is_found_while_training) == (is_found, is_found)


def poisoned(root: Path, samples: str | None) -> Path:
    """A run whose batch 160 spikes, with samples or without."""
    named = f" Samples of batch 160: {samples}." if samples else ""
    event = Event(
        event="spike", severity="warning", message=f"It spiked.{named}", batch_idx=160, batch_idx_end=160, epoch=0
    )
    batches = tuple(range(1, 200))
    norms: dict[int, dict[str, object]] = {160: {"overall": 1e4}}
    return RunBuilder(root=root, batches=batches, norms=norms, events=[event]).write()


def test_each_kind_is_trained_in_both_halves() -> None:
    """Thresholds are never judged by what they were set on."""
    for fault in (*FAULTS, HEALTHY):
        seeds = [seed % 2 for one, seed in labelled() if one == fault]
        assert seeds.count(0) == seeds.count(1) > 0


def judged(kind: str, *, is_well: bool, signs: tuple[str, ...], is_found: bool) -> Judged:
    """A training of the half held out."""
    return Judged(
        kind=kind,
        seed=1,
        is_held_out=True,
        is_well=is_well,
        signs=signs,
        while_training=(),
        is_found=is_found,
        is_found_while_training=is_found,
    )


def test_the_table_counts_what_is_found_missed_and_false(tmp_path: Path) -> None:
    """A golden case of each, and it is put between the marks of a document."""
    found = [
        judged("features detached", is_well=False, signs=("backbone-not-learning",), is_found=True),
        judged("features detached", is_well=False, signs=(), is_found=False),
        judged("healthy", is_well=True, signs=("spike",), is_found=False),
    ]
    text = table(found)
    assert "| features detached | 0 of 0 | 1 of 2 | backbone-not-learning |" in text
    assert "| faults found | - | 1 of 2 (50%) |" in text
    assert "| healthy runs warned of | - | 1 of 1 (100%) |" in text
    assert "| `backbone-not-learning` | 1 | 1 | 0 | 0 |" in text
    assert "| `spike` | 0 | 0 | 1 | 0 |" in text
    document = tmp_path / "docs.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    into_docs(document, found)
    assert document.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\n{text}\n\n{END}\nafter\n"


def test_the_docs_name_every_sign_and_every_threshold() -> None:
    """With the default that the code has."""
    text = DOCS.read_text(encoding="utf-8")
    signs = {sign for fault in FAULTS for sign in fault.signs} | {"frozen", "rising"}
    assert {sign for sign in signs if f"`{sign}`" not in text} == set()
    assert {name for name in Thresholds.model_fields if name not in text} == set()
