"""Small files made to fill the memory, each read in a process of its own that may take little."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ava_pipeline.contract.layout import RunLayout
from tests.scripts import run_script
from tests.validate.building import RunBuilder
from tests.validate.damaging import Json, edit_manifest

pytestmark = pytest.mark.timeout(120)

READING = """
import resource, sys
from pathlib import Path

from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.run import open_run
from ava_pipeline.read.validate import validate_run
from ava_pipeline.write.recover import recover_run
from tests.write.feeding import NO_STEPS, NORMS, PlainMeasure, Room

ROOM = 400 * 2**20


def write(root):
    room = Room(root, resumed_from=120, measure=PlainMeasure(NORMS.model_copy(update={"name": "steps"})))
    room.write([121])
    room.close()


ACTS = {
    "predictions": lambda root: open_run(root).val_predictions(0),
    "some steps": lambda root: open_run(root).arrow("steps", batches=(1, None)),
    "steps": lambda root: open_run(root).steps(),
    "manifest": lambda root: open_run(root).manifest,
    "validate": validate_run,
    "dry": lambda root: recover_run(root, dry_run=True),
    "recover": recover_run,
    "write": write,
}
root, *acts = Path(sys.argv[1]), *sys.argv[2:]
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
for act in acts:
    try:
        ACTS[act](root)
    except DamagedFileError as error:
        print("refused:", error)
    else:
        print("done")
"""


def told(root: Path, *acts: str) -> list[str]:
    """What a process that has 400 MiB says of each act."""
    return run_script(READING, root, *acts, deadline_s=100).stdout.splitlines()


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A finished run."""
    return RunLayout(RunBuilder(root=tmp_path / "run").write())


def name_one_text_in_every_row(path: Path, column: str) -> None:
    """Put a column of texts into a file: a mebibyte in the file's dictionary, and 1,000 rows that name it."""
    num_rows = 1_000
    rows = pq.read_table(path).slice(0, 1)
    rows = pa.concat_tables([rows] * num_rows).combine_chunks()
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["x" * 2**20]))
    places = rows.schema.get_field_index(column)
    rows = rows.append_column(column, texts) if places < 0 else rows.set_column(places, column, texts)
    pq.write_table(
        rows,
        path,
        use_dictionary=[column],  # type: ignore[arg-type]  # the stubs know no names
        dictionary_pagesize_limit=2**30,
        store_schema=False,
        compression="zstd",
        write_statistics=False,
    )
    assert path.stat().st_size < 10_000


def test_a_text_that_every_row_names_is_not_unpacked(layout: RunLayout) -> None:
    """A gigabyte of ids in a file of 3 KB, or of a column that nobody declared; whichever way a table is read."""
    name_one_text_in_every_row(layout.epoch_predictions(0), "image_id")
    name_one_text_in_every_row(layout.parquet("steps"), "mine")
    refused = [
        line.startswith("refused") for line in told(layout.root, "predictions", "steps", "some steps", "validate")
    ]
    assert refused == [True, True, True, False]


@pytest.mark.parametrize("acts", [("dry", "recover"), ("write",)], ids=str)
def test_text_is_no_obstacle_to_those_who_bring_a_run_in_order(acts: tuple[str, ...], layout: RunLayout) -> None:
    """The file is kept in damaged/ and told."""
    name_one_text_in_every_row(layout.parquet("steps"), "mine")
    assert set(told(layout.root, *acts)) == {"done"}
    assert (layout.damaged / "steps.parquet").exists()


@pytest.mark.parametrize("acts", [("dry", "recover"), ("write",)], ids=str)
def test_a_csv_that_claims_ten_gigabytes_in_a_line_is_moved_unread(acts: tuple[str, ...], layout: RunLayout) -> None:
    """It is kept as a whole, and nothing of its size is copied."""
    with layout.csv("steps").open("r+b") as file:
        file.truncate(10 * 2**30)
    assert set(told(layout.root, *acts)) == {"done"}
    assert (layout.damaged / "steps.csv").exists()


@pytest.mark.parametrize("num_values", [90_000, 1_000_000])
def test_a_manifest_that_is_wrong_in_every_place_is_told_by_one(num_values: int, layout: RunLayout) -> None:
    """What is wrong with it would take more memory than the manifest, place by place."""

    def fill(manifest: Json) -> None:
        manifest["attempts"] = [0] * num_values

    edit_manifest(layout.root, fill)
    assert "manifest.json" in told(layout.root, "manifest")[0]
