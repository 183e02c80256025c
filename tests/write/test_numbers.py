"""Extreme numbers, written to every file and read back through `open_run`."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from ava_pipeline.read.run import open_run
from ava_pipeline.write.channel import PendingStep
from tests.write.feeding import NO_STEPS, PlainMeasure, Room, Staged

pytestmark = pytest.mark.timeout(60)

SMALLEST, LARGEST, THIRD = (
    1.401298464324817e-45,
    3.4028234663852886e38,
    struct.unpack("<f", struct.pack("<f", 1 / 3))[0],
)
VALUES = [math.nan, math.inf, None, 0.0, SMALLEST, LARGEST, THIRD]


def written(root: Path, columns: Sequence[str], rows: Sequence[tuple[int, int, list[object]]]) -> None:
    """Write a run of one table with these rows, each a batch, an epoch and its values."""
    room = Room(root, measure=PlainMeasure(columns=columns))
    room.files.open(NO_STEPS)
    for batch, epoch, values in rows:
        assert room.files.write([PendingStep(batch, epoch, Staged([values]), (None,))]) == 0
    room.close()


def read_from(root: Path, kind: str) -> pd.DataFrame:
    """The table as read from one format."""
    for other in {"csv", "parquet"} - {kind}:
        (root / "telemetry" / f"norms.{other}").rename(root / f"norms.{other}")
    return open_run(root).table("norms")


def bits(value: object) -> object:
    """The bits that distinguish two values; every nan is the same."""
    if value is None or value is pd.NA:
        return None
    assert isinstance(value, float)
    return "nan" if math.isnan(value) else struct.pack("<d", value)


both = pytest.mark.parametrize("kind", ["csv", "parquet"])


@both
def test_nan_infinity_null_and_every_bit_come_back(kind: str, tmp_path: Path) -> None:
    """Not finite, not measured, and the smallest and largest float32 stay distinct."""
    written(tmp_path, ["overall"], [(batch, 0, [value]) for batch, value in enumerate(VALUES, start=1)])
    frame = read_from(tmp_path, kind)
    assert str(frame["overall"].dtype) == "float[pyarrow]"
    assert [bits(value) for value in frame["overall"].array.__arrow_array__().to_pylist()] == [
        bits(value) for value in VALUES
    ]


@both
def test_a_trillion_batches_and_ten_thousand_epochs(kind: str, tmp_path: Path) -> None:
    """A run may be of any length."""
    keys = [(2**40, 0), (2**40 + 1, 10_000), (2**62, 10_000)]
    written(tmp_path, ["overall"], [(batch, epoch, [0.5]) for batch, epoch in keys])
    frame = read_from(tmp_path, kind)
    assert list(zip(frame["batch_idx"].tolist(), frame["epoch"].tolist(), strict=True)) == keys


@both
@pytest.mark.parametrize("num_columns", [1, 500])
def test_one_column_and_five_hundred(kind: str, num_columns: int, tmp_path: Path) -> None:
    """Each value is in its own column."""
    columns = [f"group_{number}" for number in range(num_columns)]
    written(tmp_path, columns, [(batch, 0, [float(batch + place) for place in range(num_columns)]) for batch in (1, 2)])
    frame = read_from(tmp_path, kind)
    assert list(frame.columns) == ["batch_idx", "epoch", *columns]
    assert frame[columns].iloc[1].tolist() == [float(2 + place) for place in range(num_columns)]


def test_minus_infinity_breaks_the_rule_of_a_norm_and_is_reported(tmp_path: Path) -> None:
    """A norm is not below 0, so -inf is the one value that is not finite and not a valid norm."""
    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    assert room.files.write([PendingStep(1, 0, Staged([[-math.inf, 1.0]]), (None,))]) == 1
    room.close()
    events = open_run(tmp_path).events()
    assert set(events["event"]) == {"failed_row", "non_finite"}
