"""Readers of files changed at random return an answer or raise an error of the package, and nothing else.

`AVA_FUZZ_EXAMPLES` is the number of files tried; `make fuzz` tries many.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_pipeline.contract.events import Event
from ava_pipeline.errors import AvaPipelineError
from ava_pipeline.evaluation.evaluate import evaluate, prediction_paths
from ava_pipeline.read.run import open_run
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.recover import recover_run
from tests.validate.building import RunBuilder

IS_SHORT = "AVA_FUZZ_EXAMPLES" not in os.environ  # then with the same files each time
NUM_EXAMPLES = 40 if IS_SHORT else int(os.environ["AVA_FUZZ_EXAMPLES"])
EVENT = Event(event="gap", severity="warning", message='"', batch_idx=1, batch_idx_end=9, epoch=0)

READERS: tuple[Callable[[Path], object], ...] = (
    lambda root: open_run(root).gradient_norms(),
    lambda root: open_run(root).steps(),
    lambda root: open_run(root).events(),
    lambda root: open_run(root).val_predictions(0),
    lambda root: open_run(root).metrics(),
    validate_run,
    lambda root: [evaluate(file) for file in prediction_paths(root)],
    lambda root: recover_run(root, dry_run=True),
)

Change = Callable[[bytes], bytes]


def overwritten(place: float, junk: bytes) -> Change:
    """Replace bytes."""
    return lambda data: data[: int(place * len(data))] + junk + data[int(place * len(data)) + len(junk) :]


def inserted(place: float, junk: bytes) -> Change:
    """Insert bytes, as when two processes write to one file."""
    return lambda data: data[: int(place * len(data))] + junk + data[int(place * len(data)) :]


def cut(place: float, share: float) -> Change:
    """Remove bytes, at the end or before it."""
    return lambda data: data[: int(place * len(data))] + data[int((place + share) * len(data)) :]


PLACES = st.floats(0, 1, exclude_max=True)
JUNK = st.binary(min_size=1, max_size=9) | st.sampled_from(
    [b"\x00" * 64, b"\xff" * 8, b'"', b"\n", b",", b"nan", b"-1"]
)
CHANGES = (
    st.builds(overwritten, PLACES, JUNK) | st.builds(inserted, PLACES, JUNK) | st.builds(cut, PLACES, st.floats(0, 1))
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Every file of a finished and of a running run, with the run."""
    roots = [
        RunBuilder(root=tmp_path_factory.mktemp("fuzz") / status, status=status, batches=(10, 20, 30), events=[EVENT])
        for status in ("finished", "running")
    ]
    return [
        (root, path) for root in [one.write() for one in roots] for path in sorted(root.rglob("*")) if path.is_file()
    ]


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """The file holds `data` inside the block."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_a_line_that_is_not_utf8_is_listed(tmp_path: Path) -> None:
    """Found by the last test: such a line was skipped without a finding."""
    root = RunBuilder(root=tmp_path / "run").write()
    path = root / "telemetry/steps.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"30,0,\xb7\xff\n", *lines[4:]]))
    found = [(one.id, one.row) for one in validate_run(root) if str(one.file).endswith("steps.csv")]
    assert ("files.line", 3) in found


@pytest.mark.parametrize(
    "header", ['batch_idx,"epoch,time_utc,loss_scale,loss', 'batch_idx,epo"ch,time_utc,loss_scale,loss']
)
def test_a_stray_quote_in_a_header_is_found(header: str, tmp_path: Path) -> None:
    """Found by the last test: the header passed for the right columns, whose names were then missing."""
    root = RunBuilder(root=tmp_path / "run").write()
    path = root / "telemetry/steps.csv"
    path.write_text("\n".join([header, *path.read_text().splitlines()[1:]]) + "\n")
    assert "files.columns" in {one.id for one in validate_run(root)}


@pytest.mark.timeout(3600)
@settings(max_examples=NUM_EXAMPLES, derandomize=IS_SHORT, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_any_file_is_read_or_refused_in_our_words(
    files: list[tuple[Path, Path]], data: st.DataObject, changes: list[Change]
) -> None:
    """Whatever a disk or a person did to one file of a run, only errors of the package are raised."""
    root, path = data.draw(st.sampled_from(files), label="file")
    content = path.read_bytes()
    for change in changes:
        content = change(content)
    with replaced(path, content):
        for read in READERS:
            reads_or_refuses(read, root)


def reads_or_refuses(read: Callable[[Path], object], root: Path) -> None:
    """A damaged journal warns; a reader returns an answer or raises an error of the package."""
    with warnings.catch_warnings(), suppress(AvaPipelineError):
        warnings.simplefilter("ignore", UserWarning)
        read(root)
