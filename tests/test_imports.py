"""The directions of imports, which keep reading free of torch and writing free of models."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ava_pipeline

PACKAGE = Path(ava_pipeline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import of ava_pipeline, besides itself. Reading checks config.yaml, so it knows the config.
CONTRACT = {"errors", "contract"}
CONFIG = {"config", "config_errors", "yaml_text"}
LEAVES = CONTRACT | CONFIG | {"signs", "metrics"}
ALLOWED = {
    "errors": set(),
    "contract": {"errors"},
    **dict.fromkeys(CONFIG, CONTRACT | CONFIG | {"signs"}),
    "signs": CONTRACT,
    "metrics": CONTRACT,
    "printed": CONTRACT | {"metrics"},
    "which_code": set(),
    "write": LEAVES | {"which_code"},
    "collect": LEAVES | {"write"},
    "train": LEAVES | {"printed", "write", "collect"},
    "read": LEAVES | {"printed"},
}
NO_TORCH = ("contract", "signs", "metrics", "config", "errors", "write", "read")
TORCH = {"torch", "torchvision"}


def room_of(path: Path) -> str:
    """The folder or the file below ava_pipeline."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of everything that a module imports, wherever it stands in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a module imports from."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("ava_pipeline.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    """A room imports only rooms below it, and nothing imports the command line."""
    room = room_of(path)
    if room in ALLOWED:
        assert rooms_imported(path) <= ALLOWED[room] | {room}
    if room not in {"cli", "__main__"}:
        assert "cli" not in rooms_imported(path)


def test_every_room_has_its_place() -> None:
    """A new room is placed in the order of imports, or it is an entry point that nothing imports."""
    entry_points = {room_of(path) for path in MODULES} - set(ALLOWED) - {"__init__", "__main__", "cli"}
    importers = {room: room_of(path) for path in MODULES for room in rooms_imported(path)}
    below = {room: by for room, by in importers.items() if room in entry_points and by not in {room, "cli"}}
    assert not below


def test_the_design_lists_every_room() -> None:
    """With what is in it."""
    design = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    rooms = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir() if path.name[0] != "_"}
    assert {room for room in rooms - {"py.typed"} if f"`{room}`" not in design} == set()


@pytest.mark.parametrize("room", NO_TORCH)
def test_rooms_below_training_name_no_torch(room: str) -> None:
    """Reading, validating and reporting work where torch is not installed."""
    for path in MODULES:
        if room_of(path) == room:
            assert not {name.split(".")[0] for name in imported(path)} & TORCH, path


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_itself_loads_nothing_heavy() -> None:
    """`import ava_pipeline` in a script costs next to nothing."""
    heavy = {"torch", "torchvision", "numpy", "pandas", "pyarrow", "pydantic", "scipy", "yaml", "rich", "typer"}
    assert not loaded_by("import ava_pipeline") & heavy


def test_reading_and_validating_load_no_torch() -> None:
    """Not even by way of something else."""
    statement = "import ava_pipeline.read.validate; from ava_pipeline import open_run"
    assert not loaded_by(statement) & {*TORCH, "matplotlib"}


def test_the_command_line_does_not_wait_for_what_few_commands_need() -> None:
    """Statistics, plots and training are loaded where they are used."""
    assert not loaded_by("import ava_pipeline.cli") & {*TORCH, "matplotlib", "plotly", "scipy.stats", "scipy.ndimage"}


def test_the_public_names_are_sorted_and_there() -> None:
    """Each name of `__all__` can be imported, and is the object of its own home."""
    assert ava_pipeline.__all__ == sorted(ava_pipeline.__all__)
    for name in ava_pipeline.__all__:
        found = getattr(ava_pipeline, name)
        assert found is getattr(importlib.import_module(found.__module__), name)
    assert set(ava_pipeline.__all__) <= set(dir(ava_pipeline))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """A mistyped name is an AttributeError that lists what there is."""
    with pytest.raises(AttributeError, match="open_run"):
        _ = ava_pipeline.open_runs
