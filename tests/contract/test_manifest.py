"""The manifest: written whole, read strictly, and which groups add up."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ava_pipeline.contract import manifest as manifests
from ava_pipeline.contract.manifest import (
    Attempt,
    Group,
    Manifest,
    TableEntry,
    partitions,
    read_manifest,
    utc_now,
    write_manifest,
)
from ava_pipeline.errors import DamagedFileError
from tests.validate.building import GROUPS, NORMS


@pytest.fixture
def manifest() -> Manifest:
    """A manifest of one attempt."""
    return Manifest(
        heartbeat_utc=utc_now(),
        tables={"gradient_norms": TableEntry(declaration=NORMS, formats=("csv",))},
        groups=GROUPS,
        run_info={"seed": 1, "nested": {"list": [1.5, None]}},
        attempts=[Attempt(number=1, started_utc=utc_now(), collect_every_n=10)],
    )


def test_it_reads_back_as_it_was_written(manifest: Manifest, tmp_path: Path) -> None:
    """Tables, groups and the user's own facts included."""
    path = tmp_path / "telemetry" / "manifest.json"
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest


def test_counters_are_checked_when_they_are_set(manifest: Manifest) -> None:
    """A negative count is a bug, which should raise where it is made."""
    with pytest.raises(ValidationError):
        manifest.attempt.counters.written = -1


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema_version"),
        ('"number": 1', '"number": "one"', r"attempts\.0\.number"),
        ('"deferred"', '"deferral"', r"attempts\.0"),
        ('"status": "running"', '"status": "sleeping"', "status"),
        ("{", "", "the file"),
    ],
)
def test_an_invalid_manifest_is_refused_with_the_place(
    old: str, new: str, place: str, manifest: Manifest, tmp_path: Path
) -> None:
    """The content of a file that an editor or a newer version changed is not guessed."""
    path = tmp_path / "manifest.json"
    write_manifest(path, manifest)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DamagedFileError, match=rf"manifest\.json.*{place}"):
        read_manifest(path)


def test_a_missing_manifest_is_not_a_damaged_one(tmp_path: Path) -> None:
    """Before the first step it does not exist, which is not damage."""
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "manifest.json")


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong file under this name does not fill the memory."""
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 10)
    path = tmp_path / "manifest.json"
    path.write_bytes(b" " * 11)
    with pytest.raises(DamagedFileError, match="10 bytes"):
        read_manifest(path)


def group(parent: str | None, *parameters: str) -> Group:
    """A group with these parameters."""
    return Group(role="other", parent=parent, parameters=parameters)


def test_children_that_hold_every_parameter_partition_their_parent() -> None:
    """The head's layers are the head; the overall norm has parameters that no column shows."""
    assert partitions(GROUPS) == {"mlp_head": ("mlp_layer_0", "mlp_layer_3")}


@pytest.mark.parametrize(
    "groups",
    [
        {"all": group(None, "a", "b"), "one": group("all", "a")},
        {"all": group(None, "a", "b"), "one": group("all", "a", "b"), "two": group("all", "b")},
        {"all": group(None, "a")},
        {"all": group(None, "a", "b"), "one": group("all", "a"), "two": group("one", "b")},
    ],
    ids=["one parameter in no child", "one parameter in two children", "no children", "a grandchild"],
)
def test_other_children_do_not(groups: dict[str, Group]) -> None:
    """Their squares need not add up, and no rule may demand it."""
    assert "all" not in partitions(groups)
