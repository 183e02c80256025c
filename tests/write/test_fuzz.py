"""Randomly damaged runs are recovered or resumed without repeating a row, or refused with one of our exceptions.

`AVA_FUZZ_EXAMPLES` sets the number of examples; `make fuzz` tries many.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import AvaPipelineError
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.recover import recover_run
from tests.read.test_fuzz import CHANGES, IS_SHORT, NUM_EXAMPLES, Change
from tests.validate.building import RunBuilder
from tests.write.feeding import NO_STEPS, Room, leave_as_killed, parquet_batches, step

Damage = Callable[[Path], None]


def become_folder(path: Path) -> None:
    """Replace the file by a folder that is not empty."""
    path.unlink()
    (path / "inner").mkdir(parents=True)


def become_link(target: str) -> Damage:
    """Replace the file by a link; the target is relative to its folder."""

    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(target.format(name=path.name))

    return link


def become(content: bytes) -> Damage:
    """Replace the file's content."""
    return lambda path: void(path.write_bytes(content))


def change(changes: list[Change]) -> Damage:
    """Change, remove or insert bytes."""

    def rewrite(path: Path) -> None:
        content = path.read_bytes()
        for one in changes:
            content = one(content)
        path.write_bytes(content)

    return rewrite


def void(_: object) -> None:
    """Nothing."""


LINKS = ("{name}", "/etc/passwd", "/dev/zero", "../..", "events.csv", "nowhere", "../manifest.json")
DAMAGES = (
    st.builds(change, st.lists(CHANGES, min_size=1, max_size=3))
    | st.sampled_from(LINKS).map(become_link)
    | st.just(become_folder)
    | st.just(become(b""))
)
# Not a holder on another host: each example would wait for its next heartbeat.
LOCKS = st.binary(max_size=20) | st.sampled_from([b"[" * 4096, b'{"pid":1e999}', b'{"pid":NaN}', b"null", b"\xff"])


def recover(root: Path) -> None:
    """Recover twice; the second time there is nothing to do."""
    recover_run(root)
    assert recover_run(root).is_complete
    validate_run(root)


def go_on(resumed_from: int) -> Damage:
    """Resume behind a batch and write one row; each batch is stored once."""

    def write(root: Path) -> None:
        room = Room(root, resumed_from=resumed_from)
        try:
            room.files.open(NO_STEPS)
            room.files.write([step(resumed_from + 1)])
        finally:
            room.close()
        found = list(map(int, map(str, parquet_batches(root))))
        assert found == sorted({*found, resumed_from + 1})

    return write


ACTS = st.just(recover) | st.sampled_from([0, 5, 10, 12]).map(go_on)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """A run of two attempts, the second killed, and a run with every table and file."""
    root = tmp_path_factory.mktemp("fuzz")
    first = Room(root / "room")
    first.write(range(1, 9))
    first.close()
    second = Room(root / "room", resumed_from=8)
    second.write(range(9, 13))
    leave_as_killed(second)
    logging.disable(logging.CRITICAL)
    yield [root / "room", RunBuilder(root=root / "run", status="running", batches=(10, 20, 30)).write()]
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3600)
@settings(max_examples=NUM_EXAMPLES, derandomize=IS_SHORT, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), damage=DAMAGES, lock=LOCKS, act=ACTS)
def test_any_damaged_run_is_repaired_or_refused_with_our_exceptions(
    roots: list[Path], data: st.DataObject, damage: Damage, lock: bytes, act: Damage
) -> None:
    """Any damage of a file and any content of the lock file raise only our exceptions."""
    source = data.draw(st.sampled_from(roots), label="run")
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        shutil.copytree(source, root)
        RunLayout(root).lock.write_bytes(lock)
        damage(root / data.draw(st.sampled_from(files), label="file"))
        try:
            act(root)
        except AvaPipelineError as error:
            assert str(error)  # noqa: PT017  # whichever it is, it says something
