"""Names and texts from elsewhere never become a path, a formula or a second line."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from ava_pipeline.contract.events import EVENTS, Event, event_columns
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.run import open_run
from ava_pipeline.write.writers import CsvWriter
from tests.validate.building import RunBuilder
from tests.validate.damaging import Json, edit_manifest


def events_csv(path: Path, texts: Sequence[str]) -> list[dict[str, str]]:
    """Events with these messages, as another program reads them."""
    table = RunTable.of(EVENTS)
    events = [
        Event(event="misuse", severity="info", message=text, column=text, batch_idx=1, batch_idx_end=1, epoch=0)
        for text in texts
    ]
    writer = CsvWriter(path, table.arrow_schema)
    writer.write(pa.RecordBatch.from_pydict(event_columns(events), schema=table.arrow_schema))
    writer.close()
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r\n=1", " =1"])
def test_no_cell_of_events_is_a_formula(text: str, tmp_path: Path) -> None:
    """The text of an error comes from anywhere, and a spreadsheet runs a text that begins like a formula."""
    (row,) = events_csv(tmp_path / "events.csv", [text])
    for cell in (row["message"], row["column"]):
        assert cell == "'" + text.strip()
        assert cell[0] not in "=+-@\t\r"


def test_quotes_commas_newlines_and_html_stay_in_their_cell(tmp_path: Path) -> None:
    """A row is one line, whatever its message holds."""
    texts = ['say "no", or', "two\nlines", "<script>alert('x')</script>", "a,b", "'", '"']
    rows = events_csv(tmp_path / "events.csv", texts)
    assert [row["message"] for row in rows] == [" ".join(text.split()) for text in texts]
    assert (tmp_path / "events.csv").read_bytes().count(b"\n") == 1 + len(texts)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b", "..", "", "a\nb", "<b>", "x\x00", "=x"])
def test_a_table_in_the_manifest_is_no_path(name: str, tmp_path: Path) -> None:
    """The error names the manifest, and no file of that name is opened."""
    root = RunBuilder(root=tmp_path / "run").write()
    (tmp_path / "secret.csv").write_bytes(RunLayout(root).csv("steps").read_bytes())

    def rename(manifest: Json) -> None:
        entry = manifest["tables"].pop("steps")
        entry["declaration"]["table"]["name"] = name
        manifest["tables"][name] = entry

    edit_manifest(root, rename)
    with pytest.raises(DamagedFileError, match=r"(?s)manifest\.json.*name"):
        open_run(root).table(name)


@pytest.mark.parametrize("name", ["=x", "a\nb", "<b>", "a,b", 'a"b', ""])
def test_a_column_in_the_manifest_is_a_name(name: str, tmp_path: Path) -> None:
    """A name that could not be written is not read either."""
    root = RunBuilder(root=tmp_path / "run").write()
    edit_manifest(root, lambda manifest: manifest["tables"]["steps"]["declaration"].update(run_column_names=[name]))
    with pytest.raises(DamagedFileError, match=r"manifest\.json.*cannot name a column"):
        open_run(root).steps()


def test_a_table_with_two_names_is_refused(tmp_path: Path) -> None:
    """Its files would be those of another table."""
    root = RunBuilder(root=tmp_path / "run").write()
    edit_manifest(root, lambda manifest: manifest["tables"].update(other=manifest["tables"]["steps"]))
    with pytest.raises(DamagedFileError, match="'other' declares itself as 'steps'"):
        open_run(root).table("other")
