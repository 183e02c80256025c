"""Rows of two runs are matched by batch and ids, whatever their order and their types."""

import pyarrow as pa
import pytest

from ava_pipeline.compare.rows import match_rows


def test_rows_are_matched_by_batch() -> None:
    """The batches that only one run has are left out."""
    matched = match_rows(pa.table({"batch_idx": [2, 4, 6, 8]}), pa.table({"batch_idx": [3, 6, 9, 4]}))
    assert matched.batches.tolist() == [4, 6]
    assert (matched.in_a.tolist(), matched.in_b.tolist()) == ([1, 2], [3, 1])


@pytest.mark.parametrize("as_text", [False, True])
def test_rows_of_a_batch_are_matched_by_their_ids(as_text: bool) -> None:  # noqa: FBT001  # a parameter
    """Two ids are two: ("1", "12") is another pair than ("11", "2"), and 7 is the id "7"."""
    a = pa.table({"batch_idx": [1, 1, 2], "image1": [1, 11, 7], "image2": [12, 2, 7]})
    b = pa.table({"batch_idx": [2, 1, 1], "image1": [7, 11, 5], "image2": [7, 2, 5]})
    if as_text:
        b = pa.table({"batch_idx": [2, 1, 1], "image1": ["7", "11", "5"], "image2": ["7", "2", "5"]})
    matched = match_rows(a, b, ("image1", "image2"))
    assert matched.batches.tolist() == [1, 2]
    assert [matched.names[key] for key in matched.keys] == [("11", "2"), ("7", "7")]
    assert (matched.in_a.tolist(), matched.in_b.tolist()) == ([1, 2], [1, 0])


def test_repeated_rows_are_counted() -> None:
    """The first is compared."""
    matched = match_rows(pa.table({"batch_idx": [1, 1, 2]}), pa.table({"batch_idx": [1, 2]}))
    assert (matched.in_a.tolist(), matched.num_twice_in_a, matched.num_twice_in_b) == ([0, 2], 1, 0)


@pytest.mark.parametrize("key", [(), ("name",)])
def test_no_rows_match_nothing(key: tuple[str, ...]) -> None:
    """Neither raises."""
    empty = pa.table({"batch_idx": pa.array([], pa.int64()), "name": pa.array([], pa.string())})
    some = pa.table({"batch_idx": [1], "name": ["a"]})
    for one, other in ((empty, some), (some, empty), (empty, empty)):
        assert match_rows(one, other, key).num_rows == 0
