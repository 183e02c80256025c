"""Splits: stable, disjoint, never empty, and the same when they are read back."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_pipeline.errors import ConfigError, SplitError
from ava_pipeline.train.data.labels import read_ava_labels
from ava_pipeline.train.data.split import Split, split_by_hash, split_from_files

AVA = Path(__file__).parents[3].parent / "shared" / "ava"
TENTHS = (0.8, 0.1, 0.1)
IDS = np.arange(1, 5001)


def sets(split: Split) -> dict[int, str]:
    """Return image id -> name of its set."""
    return {image_id: name for name in ("train", "val", "test") for image_id in getattr(split, name).tolist()}


def test_the_hash_is_the_same_everywhere() -> None:
    """Computed by hand with Python integers: a run resumed on another machine must not train on its test set."""
    mask = 2**64 - 1

    def mix(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the reference implementation's first output for seed 0
    places = {image_id: (mix(image_id ^ mix(7)) >> 11) / 2**53 for image_id in IDS.tolist()}
    expected = {i: "train" if place < 0.8 else "val" if place < 0.9 else "test" for i, place in places.items()}
    assert sets(split_by_hash(IDS, fractions=TENTHS, seed=7)) == expected


def test_fractions_come_out() -> None:
    """Within four standard deviations of a binomial."""
    split = split_by_hash(IDS, fractions=TENTHS, seed=0)
    assert len(split.val) == pytest.approx(500, abs=85)
    assert len(split.test) == pytest.approx(500, abs=85)


@given(st.sets(st.integers(0, 10**6), min_size=60, max_size=200), st.integers())
def test_neither_order_nor_more_images_move_an_image(ids: set[int], seed: int) -> None:
    """The set of an image does not depend on the other images."""
    more = np.concatenate([np.array(list(ids)), np.arange(2 * 10**6, 2 * 10**6 + 100)])
    small = sets(split_by_hash(sorted(ids), fractions=(0.5, 0.5, 0.0), seed=seed))
    large = sets(split_by_hash(more[::-1], fractions=(0.5, 0.5, 0.0), seed=seed))
    assert small.items() <= large.items()


def test_another_seed_is_another_split() -> None:
    """Splits are independent: a tenth of one seed's validation images are in another's, also for adjacent ids."""
    one, other = (split_by_hash(IDS, fractions=TENTHS, seed=seed) for seed in (0, 1))
    assert len(np.intersect1d(one.val, other.val)) == pytest.approx(50, abs=30)


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.1, -0.1, 0.0), (float("nan"), 0.5, 0.5)])
def test_invalid_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    """Expected are three, none negative, that sum to 1."""
    with pytest.raises(SplitError, match="expected three fractions for train, val and test"):
        split_by_hash(IDS, fractions=fractions, seed=0)


@pytest.mark.parametrize(("fractions", "empty"), [((0.0, 0.5, 0.5), "train"), ((1.0, 0.0, 0.0), "val")])
def test_an_empty_set_is_refused_with_a_remedy(fractions: tuple[float, ...], empty: str) -> None:
    """The message names the set and what to do."""
    with pytest.raises(SplitError, match=rf"No images for {empty} .* Give more images or a larger fraction"):
        split_by_hash(IDS, fractions=fractions, seed=0)


def test_an_empty_test_set_is_fine() -> None:
    """Many runs have no test set."""
    assert len(split_by_hash(IDS, fractions=(0.9, 0.1, 0.0), seed=0).test) == 0


def lists(folder: Path, **texts: str) -> dict[str, Path]:
    """Write id lists."""
    paths = {name: folder / f"{name}.txt" for name in texts}
    for name, path in paths.items():
        path.write_bytes(texts[name].encode())
    return paths


def test_lists_take_suffixes_comments_and_any_line_end(tmp_path: Path) -> None:
    """As id lists in the field have them; a repeated id counts once."""
    paths = lists(tmp_path, train="\ufeff# ids\r\n3.jpg\r\n\r\n1 # good\r\n2.JPG\r\n3", val="5\n4\n")
    split = split_from_files(paths, [1, 2, 3, 4, 5])
    assert [split.train.tolist(), split.val.tolist(), split.test.tolist()] == [[1, 2, 3], [4, 5], []]


def test_ids_without_labels_are_reported_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning a file with the number and the first few; the other ids stay."""
    unknown = "\n".join(str(n) for n in range(100, 130))
    with caplog.at_level(logging.WARNING):
        split = split_from_files(lists(tmp_path, train=f"1\n2\n{unknown}", val="3"), [1, 2, 3])
    assert split.train.tolist() == [1, 2]
    assert len(caplog.records) == 1
    assert "train.txt: 30 of 32 ids" in caplog.text
    assert "100, 101," in caplog.text
    assert "and 10 more" in caplog.text


def test_sets_that_share_images_are_refused(tmp_path: Path) -> None:
    """The message names the shared ids, also those without labels: the lists are wrong all the same."""
    with pytest.raises(SplitError, match=r"2 images are in both train and test: 2, 9\. Remove them from one"):
        split_from_files(lists(tmp_path, train="1\n2\n9", val="3", test="9\n2"), [1, 2, 3])


@pytest.mark.parametrize("line", ["abc", "1.png", "-4", "1 2", "1.5", "9" * 30])
def test_lines_without_an_id_are_named(tmp_path: Path, line: str) -> None:
    """With file and line number."""
    with pytest.raises(SplitError, match=r"val\.txt: expected image ids, got line 3: "):
        split_from_files(lists(tmp_path, train="1", val=f"2\n\n{line}\n"), [1, 2])


def test_lists_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    """A missing file, an unknown set, a missing set, a set whose images all lack labels."""
    paths = lists(tmp_path, train="1", val="2")
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read"):
        split_from_files({**paths, "test": tmp_path / "none.txt"}, [1, 2])
    with pytest.raises(SplitError, match="give train, val and, if wanted, test"):
        split_from_files({**paths, "valid": paths["val"]}, [1, 2])
    with pytest.raises(SplitError, match="give train, val and, if wanted, test"):
        split_from_files({"train": paths["train"]}, [1, 2])
    with pytest.raises(SplitError, match=r"No images for val \(train 1, val 0, test 0\)"):
        split_from_files(paths, [1])


def test_a_split_built_by_hand_is_checked_too() -> None:
    """The sets of every split are disjoint, however it was made."""
    with pytest.raises(SplitError, match="both train and val: 2"):
        Split(np.array([1, 2]), np.array([2]), np.array([], np.int64))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """The same ids in the same sets, from a file that pandas can read."""
    split = split_by_hash(IDS, fractions=TENTHS, seed=3)
    path = tmp_path / "run" / "split.csv"
    split.save(path)
    assert sets(Split.load(path)) == sets(split)
    assert pd.read_csv(path).columns.to_list() == ["image_id", "set"]


@pytest.mark.parametrize("text", [None, "", "a,b\n", "image_id,set\n1,train\n2,valid\n", "image_id,set\nx,train\n"])
def test_a_damaged_split_is_refused(tmp_path: Path, text: str | None) -> None:
    """Missing, empty, another file, an unknown set, an invalid id."""
    path = tmp_path / "split.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SplitError, match=r"split\.csv: .* Start the run over"):
        Split.load(path)


def test_the_official_test_list_works_on_real_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """AVA's list has 20,000 ids, most of them not among 10,000 rows: a warning, not an error."""
    if not AVA.exists():
        pytest.skip(f"{AVA} is absent: AVA's lists are not redistributed with the project")
    ids = read_ava_labels(AVA / "AVA_10000_rows.txt")["image_id"].to_numpy()
    official, broken = AVA / "generic_test.jpgl", AVA / "broken_image_ids.txt"
    rest = np.setdiff1d(ids, np.loadtxt(official, dtype=np.int64))
    paths = lists(tmp_path, train="\n".join(map(str, rest[1000:])), val="\n".join(map(str, rest[:1000])))
    with caplog.at_level(logging.WARNING):
        split = split_from_files({**paths, "test": official}, ids)
    assert sorted([*split.train, *split.val, *split.test]) == sorted(ids)
    assert "generic_test.jpgl: 19223 of 20000 ids have no labels" in caplog.text
    assert split_from_files({**paths, "test": broken}, ids).train.tolist() == rest[1000:].tolist()
