"""A finding in a CSV file names the line that an editor shows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ava_pipeline.contract.events import Event
from ava_pipeline.validate import table_reader
from ava_pipeline.validate.listing import LineNumbers
from ava_pipeline.validate.validate import validate_file, validate_run
from tests.validate.building import RunBuilder
from tests.validate.damaging import delete_line, edit_lines, set_cell, set_field

EVENTS = "telemetry/events.csv"
RATES = "telemetry/learning_rates.csv"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of twelve rows with six events."""
    events = [
        Event(event="non_finite", severity="warning", message="a, b", batch_idx=batch, batch_idx_end=batch, epoch=0)
        for batch in range(10, 70, 10)
    ]
    return RunBuilder(root=tmp_path / "run", events=events).write()


def places(path: Path) -> set[tuple[str, int | None, int | None]]:
    """Rule, row and line of every finding in one file."""
    return {(finding.id, finding.row, finding.line) for finding in validate_file(path)}


def text_of(path: Path, line: int | None) -> str:
    """The text of a file's line, by the line number that an editor shows."""
    assert line is not None
    return path.read_text().split("\n")[line - 1]


def test_the_header_is_line_one(run: Path) -> None:
    """Row 5 is line 6, and the finding prints the line; a wrong header has a line and no row."""
    set_field(run / RATES, 5, "lr_group_0", "x")
    (finding,) = validate_run(run)
    assert (finding.row, finding.line) == (5, 6)
    assert str(finding) == f"{RATES}:6 lr_group_0: error: expected float64, got 'x'. [values.dtype]"
    edit_lines(run / RATES, lambda lines: ["batch_idx,epoch,a,b", *lines[1:]])
    assert places(run / RATES) == {("files.columns", None, 1)}


def test_a_parquet_file_has_rows_only(run: Path) -> None:
    """The finding prints the row."""
    path = run / "telemetry/learning_rates.parquet"
    set_cell(path, 5, "lr_group_0", -1.0)
    (finding,) = validate_file(path)
    assert (finding.row, finding.line) == (5, None)
    assert str(finding).startswith("learning_rates.parquet:5 lr_group_0: ")


def test_quoted_line_feeds_and_blank_lines_are_counted(run: Path) -> None:
    """A message of three lines and a blank line stand before the invalid row."""
    path = run / EVENTS
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"a, b"', '"a,\n""b""\n"')
    path.write_text("\n".join([*lines[:4], "", *lines[4:]]) + "\n")
    set_text(path, "\n50,50,", "\n50,40,")
    assert places(path) == {("events.range", 5, 9)}
    assert text_of(path, 9).startswith("50,40,")


def set_text(path: Path, old: str, new: str) -> None:
    """Replace a text in a file."""
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("block_bytes", [1, 90, 200, 4 * 2**20])
def test_lines_are_counted_across_blocks(block_bytes: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In damaged and intact blocks, with and without blank lines, for rules of rows and of the whole run."""
    monkeypatch.setattr(table_reader, "BLOCK_BYTES", block_bytes)
    edit_lines(run / RATES, lambda lines: [*lines[:2], "", *lines[2:8], "", "", *lines[8:]])
    set_text(run / RATES, "\n100,", "\n95,")
    spaced = {(one.id, one.row, one.line) for one in validate_run(run) if one.file == RATES}
    assert ("rows.spacing", 10, 14) in spaced
    assert text_of(run / RATES, 14).startswith("95,")
    set_text(run / RATES, "\n60,1,", "\n60,1,x")
    set_text(run / RATES, "\n120,2,", "\n120,2,7,")
    assert places(run / RATES) == {("values.dtype", 6, 8), ("files.line", 12, 16)}
    assert text_of(run / RATES, 16).startswith("120,2,7,")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.write_text(path.read_text()[:-4]), 13),
        (lambda path: edit_lines(path, lambda lines: [*lines[:3], "", f"{lines[3]}\r", *lines[4:]]), 5),
    ],
    ids=["torn", "crlf"],
)
def test_damaged_lines_have_their_number(damage: Callable[[Path], object], line: int, run: Path) -> None:
    """A torn last line, and a CRLF line after a blank line."""
    damage(run / RATES)
    assert {finding.line for finding in validate_file(run / RATES)} == {line}


def test_a_missing_row_names_the_line_before_which_it_belongs(run: Path) -> None:
    """For a missing last row, that is the line after the end."""
    path = run / "telemetry/gradient_norms.csv"
    delete_line(path, 5)
    delete_line(path, 11)
    missing = {one.line for one in validate_run(run) if one.id == "rows.tables" and str(one.file).endswith("csv")}
    assert missing == {6, 12}


def test_line_numbers_agree_with_a_count_by_hand() -> None:
    """With quotes inside quoted text, empty fields, and rows of one and of several lines."""
    blocks = [b"1,a\n2,b\n", b'\n3,"x\n""y"", z\n"\n4,\n', b'5,"\n"\n6,"q"\n\r\n7,\n', b"8,h\n"]
    lines = LineNumbers()
    for block, num_rows in zip(blocks, (2, 2, 3, 1), strict=True):
        lines.append(block, num_rows)
    text = (b"i,t\n" + b"".join(blocks)).decode().split("\n")
    assert [text[lines.line_of(row) - 1].partition(",")[0] for row in range(9)] == ["i", *map(str, range(1, 9))]
    assert lines.line_of(9) == len(text)
