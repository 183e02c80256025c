"""Two runs, from real trainings: the batch, the column and the layer at which they part are named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ava_pipeline import Comparison, compare_runs, open_run
from ava_pipeline.compare.answers import answers
from ava_pipeline.compare.columns import BeyondNoise, Unequal
from ava_pipeline.compare.values import Pair
from ava_pipeline.contract.builtin_tables import WEIGHT_DELTAS
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import NotARunError
from tests.collect.models import TinyNet
from tests.compare.recorded_runs import add_table, trained
from tests.validate.building import RunBuilder
from tests.validate.damaging import edit_manifest

BATCHES = range(1, 81)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others are compared with, which stays as it is."""
    return trained(tmp_path_factory.mktemp("plain"), BATCHES)


def states(found: Comparison) -> dict[str, str]:
    """The state of each column that both measured."""
    columns = {one.name: one.column.state for one in found.columns()}
    return {name: state for name, state in columns.items() if state != "not measured"}


def test_the_same_training_twice_has_no_difference(plain_run: Path, tmp_path: Path) -> None:
    """Every value is equal bit for bit, and the first sentence says in how many batches."""
    found = compare_runs(plain_run, trained(tmp_path, BATCHES))
    assert (found.verdict, found.parting_batch, found.first_unequal()) == ("equal", None, None)
    assert set(states(found).values()) == {"equal"}
    assert {"learning_rates.lr_group_1", "steps.loss", "gradient_norms.overall"} <= set(states(found))
    assert answers(found)[0] == (
        "No difference: every value that both runs have is equal bit for bit, in 80 batches of 3 tables."
    )
    assert found.problems == ()


def test_another_learning_rate_is_named_with_its_batch(plain_run: Path, tmp_path: Path) -> None:
    """The rate comes before the gradients, which differ from the next batch on."""

    def change(batch: int, _model: TinyNet, optimizer: torch.optim.Optimizer) -> None:
        if batch == 21:
            optimizer.param_groups[1]["lr"] = 1e-2

    found = compare_runs(plain_run, trained(tmp_path, BATCHES, change))
    assert (found.verdict, found.parting_batch) == ("different", 21)
    first = found.parted()[0]
    assert first.name == "learning_rates.lr_group_1"
    assert first.column.beyond_noise == BeyondNoise(21, Pair(1e-3, 1e-2), None, is_at_end=True)
    assert states(found)["learning_rates.lr_group_0"] == "equal"
    norms = {one.name: one.column for one in found.columns()}["gradient_norms.overall"]
    assert norms.first_unequal is not None
    assert norms.first_unequal.batch_idx == 22
    sentences = answers(found)
    assert sentences[0].startswith("The runs part at batch 21: learning_rates.lr_group_1 is 0.001 in A and 0.01 in B")
    assert sentences[1].startswith("Before batch 21 every shared value is equal bit for bit; there learning_rates.lr_g")


def test_another_order_of_the_data_is_noise(plain_run: Path, tmp_path: Path) -> None:
    """Every norm and loss differs from the first batch on, and their curves scatter around the same level."""
    found = compare_runs(plain_run, trained(tmp_path, BATCHES, seed=1))
    assert (found.verdict, found.parting_batch) == ("within noise", None)
    assert states(found)["steps.loss"] == states(found)["gradient_norms.overall"] == "within noise"
    first = found.first_unequal()
    assert first is not None
    assert first.column.num_unequal == 80
    assert isinstance(first.column.first_unequal, Unequal)
    assert first.column.first_unequal.batch_idx == 1
    assert "no column differs by more than each run itself scatters" in answers(found)[0]
    assert answers(found)[1].startswith("Values differ bit for bit from the first shared batch on, 1: ")
    assert answers(found)[2] == "1 setting of the training differs: seed is 0 in A and 1 in B."


def test_a_layer_that_was_replaced_is_named(plain_run: Path, tmp_path: Path) -> None:
    """From the batch on at which its weights became ten times as large, by tables and by snapshots."""

    def change(batch: int, model: TinyNet, _optimizer: torch.optim.Optimizer) -> None:
        if batch == 41:
            with torch.no_grad():
                model.get_parameter("mlp_head.3.weight").mul_(10)

    options: dict[str, Any] = {"track_weight_snapshots": True, "weight_snapshot_every_n": 40}
    other = trained(tmp_path / "other", BATCHES, **options)
    found = compare_runs(other, trained(tmp_path / "changed", BATCHES, change, **options))
    assert found.parting_batch == 41
    assert "gradient_norms.overall" in {one.name for one in found.parted()}
    assert found.weights is not None
    assert [one.batch_idx for one in found.weights.snapshots] == [40, 80]
    assert found.weights.first_unequal == 80
    assert found.weights.snapshots[0].is_equal
    assert found.weights.snapshots[1].layers[0].name == "mlp_head.3.weight"
    assert found.weights.snapshots[1].layers[0].relative == pytest.approx(0.9, abs=0.05)
    (sentence,) = [one for one in answers(found) if one.startswith("Weights:")]
    assert "differ first at batch 80, most in mlp_head.3.weight (relative distance 0.9" in sentence


def test_a_resumed_run_has_no_difference(plain_run: Path, tmp_path: Path) -> None:
    """Its rows are those of a run that never stopped; that it was resumed is a setting of the recording."""
    found = compare_runs(plain_run, trained(tmp_path, BATCHES, resumed=(30, 50)))
    assert found.verdict == "equal"
    (setting,) = [one for one in found.settings if one.subject == "recording"]
    assert (setting.name, setting.a, setting.b) == ("resumed", "", "from batch 30, from batch 50")
    assert "1 setting of the recording differs: resumed is none in A and from batch 30, from batch 50 in B." in answers(
        found
    )


def test_other_batches_are_matched_and_counted(tmp_path: Path) -> None:
    """Of every second and every third batch, those of every sixth are compared; a longer run has further ones."""
    a = trained(tmp_path / "a", range(1, 61), collect_every_n=2)
    b = trained(tmp_path / "b", range(1, 91), collect_every_n=3)
    found = compare_runs(a, b)
    assert found.verdict == "equal"
    for table in found.tables:
        assert (table.num_batches, table.first_batch, table.last_batch) == (10, 6, 60)
        assert (table.num_only_a, table.num_only_b) == (20, 20)
    sentences = answers(found)
    assert "1 setting of the recording differs: collect_every_n is 2 in A and 3 in B." in sentences
    rows = "20 batches that only A recorded, 20 batches that only B recorded."
    assert f"Not compared in learning_rates, steps, gradient_norms: {rows}" in sentences


def test_distances_over_other_numbers_of_batches_are_not_compared(tmp_path: Path) -> None:
    """How far weights moved in 2 batches says nothing about how far they moved in 3."""
    declared = RunTable.of(WEIGHT_DELTAS, ["overall"])
    for name, num_batches, overall in (("a", [None, 2, 3], [None, 0.2, 0.3]), ("b", [None, 2, 2], [None, 0.2, 0.2])):
        RunBuilder(root=tmp_path / name).write()
        keys = {"batch_idx": [6, 12, 18], "epoch": [0, 0, 0]}
        add_table(tmp_path / name, declared, {**keys, "num_batches": num_batches, "overall": overall})
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    (table,) = [table for table in found.tables if table.name == "weight_deltas"]
    assert (table.num_batches, table.num_other_distance) == (3, 1)
    assert {column.name: column.num_unequal for column in table.columns} == {"num_batches": 0, "overall": 0}
    assert any("1 batch up to which the weights moved over another number of batches" in one for one in answers(found))


def test_nothing_is_called_equal_where_nothing_was_compared(tmp_path: Path) -> None:
    """Runs without rows, and runs without a batch in common."""
    runs = {
        name: RunBuilder(root=tmp_path / name, batches=batches).write()
        for name, batches in {"empty": (), "early": range(10, 100, 10), "late": range(105, 200, 10)}.items()
    }
    for a, b in (("empty", "empty"), ("empty", "early"), ("early", "late")):
        found = compare_runs(runs[a], runs[b])
        assert found.verdict == "nothing to compare"
        assert answers(found)[0].startswith("Nothing could be compared")


def test_few_rows_that_differ_are_not_called_noise(tmp_path: Path) -> None:
    """Nor a difference beyond noise."""
    a = RunBuilder(root=tmp_path / "a").write()
    b = RunBuilder(root=tmp_path / "b", norms={50: {"overall": 1e3}}).write()
    found = compare_runs(a, b)
    assert (found.verdict, found.parting_batch) == ("too few rows to tell", None)
    assert (
        "Before batch 50 every shared value is equal bit for bit; there gradient_norms.overall is" in answers(found)[1]
    )


def test_a_damaged_table_is_named_and_the_others_are_compared(tmp_path: Path) -> None:
    """And the runs are not called equal."""
    a, b = (RunBuilder(root=tmp_path / name, formats=("parquet",)).write() for name in "ab")
    path = b / "telemetry/steps.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    found = compare_runs(a, b)
    assert [table.name for table in found.tables] == ["learning_rates", "gradient_norms"]
    assert found.verdict == "incomplete"
    (problem,) = found.problems
    assert problem.severity == "error"
    assert problem.message.startswith(f"B: {path}")
    assert answers(found)[0] == "No difference beyond noise was found, but a part of the runs could not be read."


def test_a_table_of_one_run_alone_is_named(plain_run: Path, tmp_path: Path) -> None:
    """It is no problem: it was not switched on."""
    found = compare_runs(plain_run, trained(tmp_path, BATCHES, track_gradients=False))
    assert (found.tables_only_a, found.problems, found.verdict) == (("gradient_norms",), (), "equal")
    assert "Only A has gradient_norms." in answers(found)


def test_a_run_without_a_manifest_is_named(tmp_path: Path) -> None:
    """Such as a directory that another collector wrote: its tables are not compared, its settings are."""
    a = RunBuilder(root=tmp_path / "a").write()
    b = RunBuilder(root=tmp_path / "b").write()
    (b / "telemetry/manifest.json").unlink()
    (a / "config.yaml").write_text("lr: 1\n")
    (b / "config.yaml").write_text("lr: 2\n")
    found = compare_runs(a, b)
    assert found.verdict == "nothing to compare"
    assert [(one.name, one.a, one.b) for one in found.settings] == [("lr", 1, 2)]
    assert any("manifest.json does not exist" in problem.message for problem in found.problems)
    assert answers(found)[0].endswith("because parts of the runs could not be read; they are named below.")


def test_a_directory_that_is_no_run_is_refused(plain_run: Path, tmp_path: Path) -> None:
    """As by every other command."""
    with pytest.raises(NotARunError, match="is not a run"):
        compare_runs(plain_run, tmp_path)


def test_groups_of_other_parameters_are_named(tmp_path: Path) -> None:
    """A column of one name that measures something else explains why its values differ."""
    a, b = (RunBuilder(root=tmp_path / name).write() for name in "ab")

    def edit(manifest: dict[str, object]) -> None:
        manifest["groups"]["mlp_layer_0"]["parameters"] = ["head.1.weight"]  # type: ignore[index]  # JSON

    edit_manifest(b, edit)
    found = compare_runs(open_run(a), open_run(b))
    (setting,) = found.settings
    assert setting.name == "groups.mlp_layer_0.parameters"
    assert (setting.a, setting.b) == ("also head.0.weight", "also head.1.weight")
