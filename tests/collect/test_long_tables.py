"""Tables with several rows per batch, from a measure of one's own to every reader."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ava_pipeline import KEY_COLUMNS, Column, Measure, Reading, StepSnapshot, Table, TelemetryCollector, open_run, runs
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import backward, tiny

LAYERS = ("conv, 1", "fc")


class Layers(Measure):
    """Two rows per batch: a layer's name, a number that grows, and whether it is large; null of the second layer."""

    table = Table(
        name="layers",
        description="A number for each layer.",
        columns=(
            *KEY_COLUMNS,
            Column(name="layer_name", dtype="string", description="The layer."),
            Column(name="number", dtype="float32", description="A number.", nullable=True, not_below=0),
            Column(name="is_large", dtype="bool", description="Whether it is above 4.", nullable=True),
        ),
        row_key=("layer_name",),
    )

    def read(self, snapshot: StepSnapshot) -> Reading:
        """The batch's number and twice as much."""
        return Reading([snapshot.batch_idx, 2 * snapshot.batch_idx])

    def columns(self, numbers: Sequence[object], layout: object) -> Mapping[str, Sequence[object]]:  # noqa: ARG002  # one layout
        """The rows of each step, one step's after those of the step before."""
        rows = np.array(numbers, dtype=np.float32).reshape(-1)
        return {
            "layer_name": LAYERS * len(numbers),
            "number": [None if row == 6 else row for row in rows.tolist()],
            "is_large": rows > 4,  # type: ignore[dict-item]  # a vector is a sequence of values
        }


def recorded(
    root: Path, batches: range, state: Mapping[str, float] | None = None, **options: object
) -> dict[str, float]:
    """Record every second batch; return the collector's state at the end."""
    model, optimizer = tiny()
    backward(model)
    with TelemetryCollector(model, optimizer, root, {"collect_every_n": 2, **options}, measures=[Layers]) as telemetry:
        if state is not None:
            telemetry.load_state_dict(state)
        for _ in batches:
            telemetry.step()
        return dict(telemetry.state_dict())


EXPECTED = {
    "batch_idx": [2, 2, 4, 4, 6, 6],
    "epoch": [0] * 6,
    "layer_name": list(LAYERS * 3),
    "number": [2.0, 4.0, 4.0, 8.0, None, 12.0],
    "is_large": [False, False, False, True, True, True],
}


@pytest.mark.parametrize("formats", [("csv",), ("parquet",), ("csv", "parquet")])
def test_every_reader_has_the_rows_of_both_formats(tmp_path: Path, formats: tuple[str, ...]) -> None:
    """With texts that need quotes, nulls and booleans; the counters count steps, and the manifest rows."""
    recorded(tmp_path, range(1, 7), formats=formats)
    run = open_run(tmp_path)
    assert run.arrow("layers").to_pydict() == EXPECTED
    assert run.manifest.attempt.counters.written == 3
    assert {run.manifest.attempt.rows[f"layers.{suffix}"] for suffix in formats} == {6}
    assert [str(one) for one in validate_run(tmp_path)] == []
    dataset = runs(tmp_path).table("layers").to_table()
    assert dataset.select(list(EXPECTED)).to_pydict() == EXPECTED
    if "csv" in formats:
        frame = pd.read_csv(tmp_path / "telemetry/layers.csv")
        assert frame["layer_name"].tolist() == EXPECTED["layer_name"]
        assert frame["is_large"].tolist() == EXPECTED["is_large"]
    if "parquet" in formats:
        layers = duckdb.read_parquet(str(tmp_path / "telemetry/layers.parquet"))
        assert layers.filter("is_large").count("*").fetchall() == [(3,)]


def test_names_are_stored_as_a_dictionary_and_numbers_by_bytes(tmp_path: Path) -> None:
    """The type of the names stays string."""
    recorded(tmp_path, range(1, 7))
    path = tmp_path / "telemetry/layers.parquet"
    group = pq.read_metadata(path).row_group(0)
    encodings = {group.column(place).path_in_schema: group.column(place).encodings for place in range(5)}
    assert "RLE_DICTIONARY" in encodings["layer_name"]
    assert "BYTE_STREAM_SPLIT" in encodings["number"]
    assert pq.read_schema(path).field("layer_name").type == pa.string()


def test_a_resume_continues_all_rows_of_a_batch(tmp_path: Path) -> None:
    """The rows behind the checkpoint move to superseded/, those of its batch stay."""
    state = recorded(tmp_path, range(1, 5))
    recorded(tmp_path, range(5, 11), state)
    recorded(tmp_path, range(5, 7), state)
    assert open_run(tmp_path).arrow("layers").to_pydict() == EXPECTED
    superseded = pd.read_csv(tmp_path / "telemetry/superseded/attempt-3/layers.csv")
    assert superseded["batch_idx"].tolist() == [6, 6, 8, 8, 10, 10]
    assert [str(one) for one in validate_run(tmp_path)] == []


def edited(root: Path, edit: Mapping[str, str]) -> list[str]:
    """What `validate` says of a CSV file in which texts were replaced."""
    path = root / "telemetry/layers.csv"
    text = path.read_text()
    for old, new in edit.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return [str(one) for one in validate_run(root)]


@pytest.mark.parametrize(
    ("edit", "rule", "place"),
    [
        ({"4,0,fc,8,true\n": '4,0,"conv, 1",8,true\n'}, "rows.key", "telemetry/layers.csv:5 "),
        ({"4,0,fc,8,true\n": "4,0,fc,9,true\n"}, "files.csv-parquet", "telemetry/layers.csv:5 "),
        ({"4,0,fc,8,true\n": "1,0,fc,8,true\n"}, "rows.order", "telemetry/layers.csv:5 "),
        ({"4,0,fc,8,true\n": "4,0,fc,-8,true\n"}, "values.range", "telemetry/layers.csv:5 "),
        ({"4,0,fc,8,true\n": "4,0,fc,8,large\n"}, "values.dtype", "telemetry/layers.csv:5 "),
        ({'4,0,"conv, 1",4,false\n4,0,fc,8,true\n': ""}, "files.csv-parquet", "telemetry/layers.parquet:3 "),
        ({'6,0,"conv, 1",,true\n': ""}, "files.csv-parquet", "telemetry/layers.csv:6 "),
    ],
)
def test_a_broken_row_is_found_and_named(tmp_path: Path, edit: Mapping[str, str], rule: str, place: str) -> None:
    """Its rule and its row; rows of one batch are matched by their order."""
    recorded(tmp_path, range(1, 7))
    findings = edited(tmp_path, edit)
    assert any(rule in finding and finding.startswith(place) for finding in findings), findings


def test_a_table_that_is_switched_off_or_on_at_a_resume_keeps_its_rows(tmp_path: Path) -> None:
    """It has rows of the attempts that measured it; nothing is missing and nothing is unknown."""
    state = recorded(tmp_path, range(1, 5))
    model, optimizer = tiny()
    backward(model)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
        telemetry.load_state_dict(state)
        for _ in range(4):
            telemetry.step()
        state = dict(telemetry.state_dict())
    assert [str(one) for one in validate_run(tmp_path)] == []
    recorded(tmp_path, range(9, 13), state)
    assert open_run(tmp_path).arrow("layers").column("batch_idx").to_pylist() == [2, 2, 4, 4, 10, 10, 12, 12]
    assert [str(one) for one in validate_run(tmp_path)] == []


def test_a_step_without_gradients_of_a_run_that_does_not_track_them(tmp_path: Path) -> None:
    """There is no table of norms, and everything else is as usual."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, track_gradients=False) as telemetry:
        for batch in range(3):
            backward(model, batch)
            telemetry.step(values={"loss": 0.5})
            telemetry.clip_grad_norm_(0.05)
            optimizer.step()
    run = open_run(tmp_path)
    assert sorted(run.manifest.tables) == ["learning_rates", "steps"]
    assert run.steps()["clip_coefficient"].isna().all()
    assert [str(one) for one in validate_run(tmp_path)] == []
