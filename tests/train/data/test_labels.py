"""read_ava_labels: the frame it returns, and its message for each type of error."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_pipeline.errors import ConfigError, LabelsError
from ava_pipeline.train.data import labels
from ava_pipeline.train.data.labels import VOTE_COLUMNS, read_ava_labels

REAL_ROWS = Path(__file__).parents[3].parent / "shared" / "ava" / "AVA_10000_rows.txt"
GOOD = "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396"
OTHER = "2 953958 10 7 15 26 26 21 10 8 1 2 15 21 1396"


def row(
    image_id: int | str = 7, votes: str = "0 1 5 17 38 36 15 6 5 1", tags: str = "1 22", challenge: str = "1396"
) -> str:
    """Return a line of AVA.txt."""
    return f"1 {image_id} {votes} {tags} {challenge}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the labels file."""
    return tmp_path / "AVA.txt"


def read(path: Path, text: str | bytes) -> pd.DataFrame:
    """Write the text unchanged and read it as labels."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_ava_labels(path)


def complaint(path: Path, text: str | bytes) -> str:
    """Return the error message of reading the text as labels."""
    with pytest.raises(LabelsError) as caught:
        read(path, text)
    return str(caught.value)


def test_columns_and_types_are_those_promised(path: Path) -> None:
    """Names, order, dtypes and the mean of a row computed by hand."""
    frame = read(path, f"{GOOD}\n{OTHER}\n")
    assert list(frame) == ["image_id", *VOTE_COLUMNS, "tag_1", "tag_2", "challenge", "gt_mean"]
    assert {str(dtype) for dtype in frame.drop(columns="gt_mean").dtypes} == {"int64"}
    assert frame["gt_mean"].dtype == np.float64
    assert frame.iloc[:1].to_numpy().tolist() == [[953619, 0, 1, 5, 17, 38, 36, 15, 6, 5, 1, 1, 22, 1396, 699 / 124]]


def test_mean_of_exactly_five_is_exactly_five(path: Path) -> None:
    """Rounding must not cross the line at 5: normalized first, these votes give 5.000000000000001."""
    assert read(path, row(votes="5 9 10 10 8 10 8 10 4 1")).loc[0, "gt_mean"] == 5.0


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD}\n{OTHER}",
        f"{GOOD}\r\n{OTHER}\r\n",
        f"{GOOD}\r{OTHER}\r",
        f"\ufeff{GOOD}\n{OTHER}\n",
        f"\n \n{GOOD}\n\t\n\n{OTHER}\n \n\n",
        f"  {GOOD}  \n\t{OTHER}\t\n".replace(" ", "\t  "),
        f"{GOOD}\n{OTHER}\n".replace(" ", "\v\f"),
        f"{GOOD}\n{OTHER}\n".replace(" ", "\u00a0"),
        f"{GOOD}\n{OTHER}\n".replace(" ", " 00"),
    ],
    ids=["no-last-newline", "crlf", "cr", "bom", "blank-lines", "tabs", "vt-ff", "nbsp", "leading-zeros"],
)
def test_harmless_variations_read_alike(path: Path, text: str) -> None:
    """Whitespace, line ends, a byte-order mark and blank lines change nothing."""
    pd.testing.assert_frame_equal(read(path, text), read(path, f"{GOOD}\n{OTHER}\n"))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (GOOD.rpartition(" ")[0], "14 values instead of 15"),
        (f"{GOOD} 3", "16 values instead of 15"),
        (row(votes="0 1 5 17 -38 36 15 6 5 1"), "votes_5: expected 0 to 1000000000, got '-38'"),
        (row(votes="0 0 0 0 0 0 0 0 0 0"), "no votes at all"),
        (row(votes="0 1 5 1.5 38 36 15 6 5 1"), "votes_4: expected an integer, got '1.5'"),
        (row(votes="nan 1 5 5 38 36 15 6 5 1"), "votes_1: expected an integer, got 'nan'"),
        (row(votes="0 1 5 5 38 36 15 6 5 +3"), "votes_10: expected an integer, got '+3'"),
        (row(votes="0 1 5 5 38 36 15 6 5 1_0"), "votes_10: expected an integer, got '1_0'"),
        (row(votes="0 1 5 5 38 36 15 6 5 \u0663"), "votes_10: expected an integer, got '\u0663'"),
        (row(votes="0 1 5 5 38 36 15 6 5 3-"), "votes_10: expected an integer, got '3-'"),
        (row(votes='0 1 5 5 38 36 15 6 5 "3"'), "votes_10: expected an integer, got '\"3\"'"),
        (row(votes="0 1 5 5 38 36 15 6 5 2000000000"), "votes_10: expected 0 to 1000000000, got '2000000000'"),
        (row(image_id="-4"), "image_id: expected 0 to"),
        (row(image_id="953619.jpg"), "image_id: expected an integer, got '953619.jpg'"),
        (row(challenge="9223372036854775808"), "challenge: expected "),
        (
            row(challenge="9" * 10_000),
            f"challenge: expected -9223372036854775808 to 9223372036854775807, got '{'9' * 20}...'",
        ),
    ],
)
def test_a_bad_row_is_named_with_line_and_reason(path: Path, bad: str, reason: str) -> None:
    """The message has the file, the line as an editor counts it, blank lines included, and what to do."""
    message = complaint(path, f"{OTHER}\r\n\r\n{bad}\r\n")
    assert f"line 3: {reason}" in message
    assert str(path) in message
    assert "original AVA.txt" in message


def test_two_rows_run_together_or_apart_are_not_mistaken_for_rows(path: Path) -> None:
    """14 and 16 values make 30 together: a count over the whole file would accept them."""
    first, _, last = GOOD.rpartition(" ")
    message = complaint(path, f"{first}\n{last} {OTHER}\n")
    assert "line 1: 14 values" in message
    assert "line 2: 16 values" in message


@pytest.mark.parametrize("num_values", [12, 14, 16])
def test_a_file_that_is_wrong_throughout_is_refused(path: Path, num_values: int) -> None:
    """Rows that agree with each other may still have another format than AVA."""
    line = " ".join(["1"] * num_values)
    assert f"line 2: {num_values} values instead of 15" in complaint(path, f"{line}\n{line}\n")


def test_twenty_bad_lines_are_listed_and_the_rest_counted(path: Path) -> None:
    """One message lists invalid lines of every type, and stays readable."""
    message = complaint(path, "\n".join([OTHER, *["1 2 3"] * 24, row(votes="0 0 0 0 0 0 0 0 0 0")]))
    assert message.count("  line ") == 20
    assert "25 of 26 lines" in message
    assert "and 5 more" in message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no rows"),
        (b"\r\n \n", "no rows"),
        (b"\xef\xbb\xbf", "no rows"),
        (b"\xff\xd8\0\1", "expected a text file"),
        (b"\xef\xbb\xbf" * 2 + GOOD.encode(), "more than one byte-order mark"),
    ],
)
def test_files_without_rows_say_so(path: Path, data: bytes, reason: str) -> None:
    """Empty, blank, binary and twice converted files each get a sentence, not the error of a parser."""
    assert reason in complaint(path, data)


def test_text_in_another_encoding_is_located(path: Path) -> None:
    """Bytes that are not UTF-8 are an error of their line."""
    assert "line 2: 1 values" in complaint(path, GOOD.encode() + b"\n\xe9\xff\n")


def test_missing_file_and_folder_say_what_to_give(tmp_path: Path) -> None:
    """The message asks for the path of AVA.txt."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read: .*\. Give the path of AVA's own AVA\.txt"):
            read_ava_labels(path)


def test_identical_duplicates_are_dropped_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first row and the order stay, and the warning names both lines."""
    with caplog.at_level(logging.WARNING):
        frame = read(path, f"{OTHER}\n{GOOD}\n\n{OTHER}\n")
    assert frame["image_id"].to_list() == [953958, 953619]
    assert "dropped 1 rows" in caplog.text
    assert "lines 1 and 4: image 953958" in caplog.text


def test_duplicates_with_other_tags_are_dropped_and_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rows are not identical, but training uses the votes only."""
    with caplog.at_level(logging.WARNING):
        frame = read(path, "\n".join([row(7, tags="1 2"), row(8), row(7, tags="3 2"), row(8)]))
    assert frame["tag_1"].to_list()[0] == 1
    assert "dropped 2 rows that repeat an image with the same votes; 1 of them have other tags" in caplog.text


def test_conflicting_duplicates_are_an_error_that_names_both_lines(path: Path) -> None:
    """Identical repetitions in the same file are not part of the error."""
    message = complaint(path, f"{OTHER}\n\n{row(7)}\n{OTHER}\n{row(7, votes='1 1 5 17 38 36 15 6 5 1')}\n")
    assert "lines 3 and 5: image 7" in message
    assert "953958" not in message


def test_unknown_tags_only_warn(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """AVA's tags are 0 to 66; others are kept, and reported once."""
    with caplog.at_level(logging.WARNING):
        frame = read(path, "\n".join(row(i, tags=tags) for i, tags in enumerate(["0 66", "67 1", "3 -1", "67 67"])))
    assert frame["tag_1"].to_list() == [0, 67, 3, 67]
    assert "3 rows have tags that AVA does not have (0 to 66): -1, 67." in caplog.text


def test_labels_are_read_without_torch() -> None:
    """Reading labels does not need the packages of training."""
    code = "import sys; from ava_pipeline import read_ava_labels; print({'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_clean_file_warns_of_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No warning means that no row was dropped."""
    read(path, f"{GOOD}\n{OTHER}\n")
    assert not caplog.records


WORDS = st.one_of(
    st.integers(0, 60).map(str),
    st.integers(-(2**64), 2**64).map(str),
    st.sampled_from(["-", "--1", "1-1", "-0", "00", "+1", "1.0", "nan", "x", "1e3", '"', ""]),
)
GAPS = st.sampled_from([" ", "\t", "  ", "\v", " \f"])
LINES = st.one_of(
    st.lists(st.integers(0, 300), min_size=15, max_size=15).map(lambda row: " ".join(map(str, row))),
    st.builds(lambda gap, words: gap.join(words), GAPS, st.lists(WORDS, min_size=13, max_size=17)),
    st.sampled_from(["", " ", "\t"]),
)
FILES = st.builds(
    lambda end, lines: end.join(lines).encode(), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(LINES, max_size=5)
)


@given(FILES)
def test_the_quick_reading_agrees_with_the_one_that_explains(data: bytes) -> None:
    """If the vectorized reader returns a result, the reader by lines returns the same: no invalid row passes."""
    quick = labels._parse_vectorised(data)
    if quick is not None:
        np.testing.assert_array_equal(quick, labels._parse_line_by_line(Path("AVA.txt"), data))


@given(st.lists(st.lists(st.integers(0, 300), min_size=15, max_size=15), min_size=1, max_size=8))
def test_plain_files_take_the_quick_reading(rows: list[list[int]]) -> None:
    """A valid file is not read by lines, which would be ten times slower."""
    plain = [[*row[:2], row[2] + 1, *row[3:]] for row in rows]
    quick = labels._parse_vectorised("\n".join(" ".join(map(str, row)) for row in plain).encode())
    assert quick is not None
    assert quick.tolist() == plain


def test_ten_thousand_real_rows_parse_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """Rows of AVA: none lost, means as published, and counts within AVA's bounds."""
    if not REAL_ROWS.exists():
        pytest.skip(f"{REAL_ROWS} is absent: AVA's rows are not redistributed with the project")
    frame = read_ava_labels(REAL_ROWS)
    num_votes = frame[list(VOTE_COLUMNS)].sum(axis=1)
    assert len(frame) == 10_000
    assert num_votes.between(80, 549).all()
    assert frame["gt_mean"].mean() == pytest.approx(5.39, abs=0.05)
    assert frame["gt_mean"].std() == pytest.approx(0.73, abs=0.02)
    assert not caplog.records
