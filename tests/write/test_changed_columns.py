"""Resumes with other columns: older rows stay if their columns still have the same meaning."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Group, Role, read_manifest
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import Table
from ava_pipeline.validate.validate import validate_run
from tests.write.feeding import (
    NO_STEPS,
    NORMS,
    PlainMeasure,
    Room,
    csv_batches,
    csv_rows,
    event_rows,
    leave_as_killed,
    parquet_batches,
    step,
)

pytestmark = pytest.mark.timeout(120)

NAMES = ("overall", "head", "layer_0", "layer_3")
L2_NORMS = NORMS.model_copy(update={"l2_of_groups": True})
Rows = dict[int, dict[str, float]]


def value(batch: int, name: str) -> float:
    """A number from which batch and column follow."""
    return batch - NAMES.index(name) / 8


def room_of(
    root: Path,
    columns: Sequence[str],
    *,
    resumed_from: int = 0,
    every: int = 1,
    table: Table = NORMS,
    groups: Mapping[str, Group] = MappingProxyType({}),
) -> Room:
    """An attempt that measures these columns."""
    measure = PlainMeasure(table, columns)
    return Room(root, resumed_from=resumed_from, measure=measure, collect_every_n=every, groups=groups)


def write(room: Room, batches: Sequence[int], *, is_killed: bool = False) -> Rows:
    """Write one row per batch, and finish the attempt or leave it as a kill does."""
    columns = room.measure.run_table.run_column_names
    made = {batch: {name: value(batch, name) for name in columns} for batch in batches}
    room.files.open(NO_STEPS)
    for batch, row in made.items():
        assert room.files.write([step(batch, *row.values())]) == 0
    if is_killed:
        leave_as_killed(room)
    else:
        room.close()
    return made


def stored_rows(root: Path) -> list[dict[str, object]]:
    """The rows of the Parquet file and its journal."""
    layout = RunLayout(root)
    stored = read_stored(layout.parquet("norms"), layout.journal("norms"))
    return stored.rows.to_pylist() if stored else []


def assert_holds(root: Path, expected: Rows) -> None:
    """Check that both files hold these rows, with every column of any row, empty if it was not measured."""
    for rows in (csv_rows(RunLayout(root).csv("norms")), stored_rows(root)):
        found = {
            row["batch_idx"]: {name: row[name] for name in NAMES if name in row and row[name] is not None}
            for row in rows
        }
        assert found == expected
        assert list(found) == sorted(expected)


columns_of_attempts = st.sets(st.sampled_from(NAMES), min_size=1).map(sorted)


@settings(max_examples=25, deadline=None)
@given(
    attempts=st.lists(
        st.tuples(columns_of_attempts, st.integers(0, 20), st.integers(0, 4), st.integers(1, 3), st.booleans()),
        min_size=2,
        max_size=4,
    )
)
def test_any_columns_and_any_spacing_after_any_resume(
    attempts: list[tuple[list[str], int, int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After any attempts, finished or killed, no row is lost or changed, and the run is valid."""
    root = tmp_path_factory.mktemp("run")
    expected: Rows = {}
    for columns, back, num_rows, every, is_killed in attempts:
        resumed_from = min(back, max(expected, default=0))
        first = (resumed_from // every + 1) * every
        batches = range(first, first + every * num_rows, every)
        room = room_of(root, columns, resumed_from=resumed_from, every=every)
        expected = {batch: row for batch, row in expected.items() if batch <= resumed_from}
        expected |= write(room, batches, is_killed=is_killed)
        assert_holds(root, expected)
        assert [str(one) for one in validate_run(root) if one.severity != "info"] == []
    shutil.rmtree(root)


def test_new_and_missing_columns_are_reported_and_declared(tmp_path: Path) -> None:
    """The files keep the order of the older columns, and the event and the manifest say what changed."""
    write(room_of(tmp_path, ["overall", "head"]), [1, 2, 3])
    write(room_of(tmp_path, ["overall", "layer_0"], resumed_from=2), [3, 4])
    layout = RunLayout(tmp_path)
    assert layout.csv("norms").read_text() == (
        "batch_idx,epoch,overall,head,layer_0\n1,0,1,0.875,\n2,0,2,1.875,\n3,0,3,,2.75\n4,0,4,,3.75\n"
    )
    (event,) = event_rows(tmp_path, "changed_columns")
    assert "new: layer_0; no longer measured: head" in str(event["message"])
    assert (event["batch_idx"], event["batch_idx_end"], event["severity"]) == (1, 2, "info")
    manifest = read_manifest(layout.manifest)
    assert manifest.tables["norms"].declaration.run_column_names == ("overall", "head", "layer_0")
    assert [one.columns["norms"] for one in manifest.attempts] == [("overall", "head"), ("overall", "layer_0")]


def group(*parameters: str, role: Role = "other", parent: str | None = None) -> Group:
    """A group of the model's parameters."""
    return Group(role=role, parent=parent, parameters=parameters)


def test_a_column_that_measures_other_parameters_continues(tmp_path: Path) -> None:
    """Rows stay where they are; the manifest says which parameters each measures, and an event names the column."""
    overall = group("a", "b", "c", role="overall")
    before = {"overall": overall, "head": group("c", parent="overall")}
    write(room_of(tmp_path, list(before), table=L2_NORMS, groups=before), [1, 2, 3])
    now = {"overall": overall, "head": group("b", "c", parent="overall")}
    write(room_of(tmp_path, list(now), table=L2_NORMS, resumed_from=3, groups=now), [4])
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4]
    (event,) = event_rows(tmp_path, "changed_columns")
    assert (event["severity"], event["batch_idx_end"]) == ("info", 3)
    assert "with other parameters than before: head" in str(event["message"])
    head = read_manifest(RunLayout(tmp_path).manifest).groups["head"]
    assert [one.parameters for one in (head.at(3), head.at(4)) if one] == [("c",), ("b", "c")]
    assert validate_run(tmp_path) == []


def test_a_head_that_grew_and_a_head_that_shrank_continue(tmp_path: Path) -> None:
    """Each row is validated against the layers that its attempt measured, and all sums are right."""

    def attempt(layers: Sequence[int], *, resumed_from: int, batches: Sequence[int]) -> None:
        names = [f"layer_{layer}" for layer in layers]
        groups = {
            "overall": group("conv", *names, role="overall"),
            "head": group(*names, role="head", parent="overall"),
            **{name: group(name, role="head_layer", parent="head") for name in names},
        }
        room = room_of(tmp_path, list(groups), table=L2_NORMS, resumed_from=resumed_from, groups=groups)
        room.files.open(NO_STEPS)
        for batch in batches:
            norms = [float(layer + 1) for layer in layers]
            head = math.hypot(*norms)
            assert room.files.write([step(batch, math.hypot(head, 5.0), head, *norms)]) == 0
        room.close()

    attempt([0, 3], resumed_from=0, batches=[1, 2])
    attempt([0, 3, 6], resumed_from=2, batches=[3, 4])
    attempt([0], resumed_from=4, batches=[5])
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4, 5]
    assert validate_run(tmp_path) == []
    path = RunLayout(tmp_path).csv("norms")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[3][3] = "5"
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    assert ("norms.head-sum", 3) in {(one.id, one.row) for one in validate_run(tmp_path)}


def test_a_column_of_another_type_starts_a_new_table(tmp_path: Path) -> None:
    """A measure whose dtype changed starts a new table."""
    write(room_of(tmp_path, ["overall"]), [1, 2])
    assert NORMS.run_columns is not None
    kind = NORMS.run_columns.model_copy(update={"dtype": "float64"})
    table = NORMS.model_copy(update={"run_columns": kind})
    write(room_of(tmp_path, ["overall"], table=table, resumed_from=2), [3])
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [3]
    (event,) = event_rows(tmp_path, "changed_columns")
    assert "other names or types" in str(event["message"])


def test_columns_that_cannot_be_empty_start_a_new_table(tmp_path: Path) -> None:
    """Older rows cannot be empty in them."""
    assert NORMS.run_columns is not None
    kind = NORMS.run_columns.model_copy(update={"nullable": False})
    table = NORMS.model_copy(update={"run_columns": kind})
    write(room_of(tmp_path, ["overall"], table=table), [1, 2])
    write(room_of(tmp_path, ["overall", "head"], table=table, resumed_from=2), [3])
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [3]
    assert "cannot be empty" in str(event_rows(tmp_path, "changed_columns")[0]["message"])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_adding_a_column_interrupted_anywhere_continues(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses the n-th rename: each file is the older or the new one, and the next try completes."""
    expected = write(room_of(tmp_path, ["overall"]), [1, 2])
    replace, left = Path.replace, [number]

    def refuse(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device", str(target))
        return replace(path, target)

    room = room_of(tmp_path, ["overall", "head"], resumed_from=2)
    with monkeypatch.context() as full:
        full.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space"):
            room.files.open(NO_STEPS)
    assert_holds(tmp_path, expected)
    expected |= write(room, [3])
    assert_holds(tmp_path, expected)
    assert not (RunLayout(tmp_path).telemetry / "superseded").exists()
