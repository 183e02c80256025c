"""Held-out samples of two runs: matched by batch and ids, and the ones whose outputs part most."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ava_pipeline.compare.answers import answers
from ava_pipeline.compare.compare import Comparison, compare_runs
from ava_pipeline.compare.holdout import HoldoutComparison
from ava_pipeline.contract.builtin_tables import HOLDOUT_SCORES, SCORES, holdout_table
from ava_pipeline.contract.tables import RunTable
from tests.compare.recorded_runs import add_table
from tests.validate.building import RunBuilder

Logits = Mapping[tuple[int, str], tuple[float, float]]  # (batch, image) -> logits

CLASSES = RunTable.of(holdout_table("classes", num_ids=2, num_classes=2, integer_ids=False))
EQUAL: Logits = {(batch, image): (1.0, 0.0) for batch in (10, 20, 30) for image in "xyz"}
NAN = float("nan")


def add_logits(root: Path, logits: Logits, label: int = 0) -> None:
    """Give a run held-out pairs (image, image')."""
    first, second = zip(*logits.values(), strict=True)
    predictions = [None if NAN in pair else int(pair[1] > pair[0]) for pair in logits.values()]
    columns: dict[str, Sequence[object]] = {
        "batch_idx": [batch for batch, _ in logits],
        "epoch": [0] * len(logits),
        "image1": [image for _, image in logits],
        "image2": [f"{image}'" for _, image in logits],
        "label": [label] * len(logits),
        "prediction": predictions,
        "logit_0": first,
        "logit_1": second,
        "correct": [None if one is None else one == label for one in predictions],
    }
    add_table(root, CLASSES, columns)


def compared(tmp_path: Path, a: Logits, b: Logits, *, label_b: int = 0) -> tuple[HoldoutComparison, Comparison]:
    """Two runs that are equal but for their held-out samples."""
    for name, logits, label in (("a", a, 0), ("b", b, label_b)):
        RunBuilder(root=tmp_path / name).write()
        add_logits(tmp_path / name, logits, label)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.holdout is not None
    return found.holdout, found


def test_equal_samples_have_no_difference(tmp_path: Path) -> None:
    """Whatever their order in the files."""
    holdout, found = compared(
        tmp_path, EQUAL, dict(sorted(EQUAL.items(), key=lambda item: (item[0][0], -ord(item[0][1]))))
    )
    assert (holdout.first_unequal, holdout.first_other_prediction, holdout.furthest) == (None, None, ())
    assert found.verdict == "equal"
    assert "Holdout: the outputs of 3 samples are equal bit for bit." in answers(found)


def test_the_batch_and_the_samples_are_named(tmp_path: Path) -> None:
    """Outputs part at batch 20, predictions at batch 30, most of all those of sample y."""
    other = {**EQUAL, (20, "x"): (1.0, 0.25), (20, "y"): (0.9, 0.0), (30, "y"): (0.0, 3.0)}
    holdout, found = compared(tmp_path, EQUAL, other)
    assert (holdout.first_unequal, holdout.num_samples) == (20, 3)
    first = holdout.first_other_prediction
    assert first is not None
    assert (first.batch_idx, first.num_samples, first.num_other_prediction) == (30, 3, 1)
    assert (first.num_correct_a, first.num_correct_b, first.largest_distance) == (3, 2, 3.0)
    assert [(one.ids, one.batch_idx, one.distance) for one in holdout.furthest] == [
        (("y", "y'"), 30, 3.0),
        (("x", "x'"), 20, 0.25),
    ]
    sample = holdout.furthest[0]
    assert (sample.outputs_a, sample.outputs_b) == ((1.0, 0.0), (0.0, 3.0))
    assert (sample.prediction_a, sample.prediction_b) == (0, 1)
    assert found.verdict == "different"
    sentence = "Holdout: predictions differ first at batch 30, of 1 of 3 samples; at batch 30, of 1."
    assert sentence in answers(found)


def test_samples_and_batches_of_one_run_alone_are_named(tmp_path: Path) -> None:
    """They are not compared; labels that changed are counted."""
    a = {key: value for key, value in EQUAL.items() if key[1] != "z"}
    b = {key: value for key, value in EQUAL.items() if key[1] != "x" and key[0] != 30}
    holdout, found = compared(tmp_path, a, b, label_b=1)
    assert (holdout.ids_only_a, holdout.ids_only_b) == ((("x", "x'"),), (("z", "z'"),))
    assert (holdout.num_only_a, holdout.num_only_b, holdout.num_other_label) == (1, 0, 1)
    assert [(one.batch_idx, one.num_samples) for one in holdout.batches] == [(10, 1), (20, 1)]
    assert "Holdout: 1 sample of A alone and 1 sample of B alone are not compared." in answers(found)


def test_an_output_that_is_no_number_in_one_run_is_furthest(tmp_path: Path) -> None:
    """Its distance is not a number; nan in both is no difference."""
    a = {**EQUAL, (10, "z"): (NAN, 0.0)}
    b = {**EQUAL, (10, "z"): (NAN, 0.0), (20, "x"): (NAN, 1.0), (20, "y"): (1e6, 0.0)}
    holdout, _ = compared(tmp_path, a, b)
    assert holdout.first_unequal == 20
    assert [(one.ids[0], one.distance) for one in holdout.furthest] == [("x", None), ("y", 1e6 - 1)]
    assert holdout.batches[1].num_other_prediction == 0  # the one of nan is null


def test_mean_scores_are_compared(tmp_path: Path) -> None:
    """A distribution of scores has no class."""
    for name, mean in (("a", 5.0), ("b", 5.5)):
        RunBuilder(root=tmp_path / name).write()
        columns: dict[str, Sequence[object]] = {
            "batch_idx": [10],
            "epoch": [0],
            "image_id": [7],
            "gt_mean": [5.0],
            "pred_mean": [mean],
            **{f"pred_dist_{score}": [0.1] for score in SCORES},
        }
        add_table(tmp_path / name, RunTable.of(HOLDOUT_SCORES), columns)
    found = compare_runs(tmp_path / "a", tmp_path / "b").holdout
    assert found is not None
    assert (found.outputs, found.first_unequal, found.first_other_prediction) == (("pred_mean",), 10, None)
    assert (found.furthest[0].ids, found.furthest[0].distance) == (("7",), 0.5)


def test_samples_of_another_kind_are_refused_in_words(tmp_path: Path) -> None:
    """And everything else is compared."""
    other = RunTable.of(holdout_table("classes", num_ids=1, num_classes=2, integer_ids=True))
    for name in "ab":
        RunBuilder(root=tmp_path / name).write()
    add_logits(tmp_path / "a", EQUAL)
    add_table(tmp_path / "b", other, {name: [] for name in other.column_names})
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.holdout is None
    assert found.verdict == "incomplete"
    (problem,) = found.problems
    assert "A have the ids image1, image2, those of B image_id" in problem.message


@pytest.mark.parametrize("num_samples", [0, 25])
def test_the_furthest_samples_are_few(tmp_path: Path, num_samples: int) -> None:
    """Ten, and each once."""
    a = {(batch, f"{sample}"): (0.0, 0.0) for batch in (10, 20) for sample in range(num_samples + 1)}
    b = {(batch, sample): (0.0, float(sample) * batch) for batch, sample in a}
    holdout, _ = compared(tmp_path, a, b)
    expected = [str(sample) for sample in range(num_samples, 0, -1)][:10]
    assert [one.ids[0] for one in holdout.furthest] == expected
    assert {one.batch_idx for one in holdout.furthest} <= {20}
