"""The directions of imports, which keep reading free of torch and writing free of models."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ava_pipeline
from ava_pipeline import errors

PACKAGE = Path(ava_pipeline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each package may import of ava_pipeline, besides itself. Reading checks config.yaml, so it knows the config.
CONTRACT = {"errors", "contract"}
LEAVES = CONTRACT | {"config", "signs", "metrics"}
READERS = ("validate", "diagnose", "many_runs", "compare", "watch", "report", "evaluation")
READ = LEAVES | {"terminal", "read"}
ALLOWED = {
    "errors": set(),
    "interrupts": set(),
    "logs": {"errors", "interrupts"},
    "contract": {"errors"},
    "config": CONTRACT | {"signs"},
    "signs": CONTRACT,
    "metrics": CONTRACT,
    "terminal": CONTRACT | {"metrics"},
    "provenance": set(),
    "write": LEAVES | {"provenance", "logs"},
    "collect": LEAVES | {"write", "logs", "interrupts"},
    "train": LEAVES | {"terminal", "write", "collect"},
    "read": LEAVES,
    "validate": READ,
    "diagnose": READ,
    "evaluation": READ,
    "many_runs": READ | {"diagnose"},
    "compare": READ | {"many_runs"},
    "watch": READ,
    "report": READ | {"diagnose", "many_runs", "compare"},
    "integrations": READ | {"write", "collect", "logs"},
}
NO_TORCH = ("contract", "signs", "metrics", "config", "errors", "interrupts", "logs", "write", "read", *READERS)
TORCH = {"torch", "torchvision"}


def package_of(path: Path) -> str:
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


def packages_imported(path: Path) -> set[str]:
    """The packages that a module imports from."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("ava_pipeline.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    """A package imports only packages below it, and nothing imports the command line."""
    package = package_of(path)
    if package in ALLOWED:
        assert packages_imported(path) <= ALLOWED[package] | {package}
    if package != "cli" and path.name != "__main__.py":
        assert "cli" not in packages_imported(path)


def test_every_package_has_its_place() -> None:
    """A new package is placed in the order of imports, or it is an entry point that nothing imports."""
    entry_points = {package_of(path) for path in MODULES} - set(ALLOWED) - {"__init__", "__main__", "cli"}
    importers = {package: package_of(path) for path in MODULES for package in packages_imported(path)}
    below = {package: by for package, by in importers.items() if package in entry_points and by not in {package, "cli"}}
    assert not below


def test_the_design_lists_every_package() -> None:
    """With what is in it."""
    design = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    packages = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir() if path.name[0] != "_"}
    assert {package for package in packages - {"py.typed"} if f"`{package}`" not in design} == set()


def test_the_design_names_files_that_exist() -> None:
    """A reader who follows it finds the file."""
    design = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", design)
    assert len(named) > 20
    assert {name for name in named if not ((PACKAGE / name).exists() or (PACKAGE.parent / name).exists())} == set()


@pytest.mark.parametrize("package", NO_TORCH)
def test_packages_below_training_name_no_torch(package: str) -> None:
    """Reading, validating and reporting work where torch is not installed."""
    for path in MODULES:
        if package_of(path) == package:
            assert not {name.split(".")[0] for name in imported(path)} & TORCH, path


def printed_by(statement: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    return done.stdout.split()


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    return set(printed_by(f"import sys; {statement}; print(*sys.modules)"))


def test_the_package_itself_loads_nothing_heavy() -> None:
    """`import ava_pipeline` in a script costs next to nothing."""
    heavy = {"torch", "torchvision", "numpy", "pandas", "pyarrow", "pydantic", "scipy", "yaml", "rich", "typer"}
    assert not loaded_by("import ava_pipeline") & heavy


def test_reading_and_validating_load_no_torch() -> None:
    """Not even by way of something else."""
    statement = "import ava_pipeline.validate.validate; from ava_pipeline import open_run"
    assert not loaded_by(statement) & {*TORCH, "matplotlib"}


def test_trackers_need_no_torch() -> None:
    """A run is exported where no training is installed."""
    statement = "import ava_pipeline.integrations.export, ava_pipeline.integrations.wandb"
    assert not loaded_by(statement) & {*TORCH, "pandas"}


def test_the_command_line_does_not_wait_for_what_few_commands_need() -> None:
    """Statistics, plots and training are loaded where they are used."""
    assert not loaded_by("import ava_pipeline.cli") & {*TORCH, "matplotlib", "plotly", "scipy.stats", "scipy.ndimage"}


def kind_and_name(name: str) -> tuple[bool, bool, str]:
    """Constants come first, then classes, then functions."""
    return not name.isupper(), name[0].islower(), name


def test_the_public_names_are_sorted_and_importable() -> None:
    """Each name of `__all__` can be imported, and is the object of its own module."""
    assert sorted(set(ava_pipeline.__all__), key=kind_and_name) == ava_pipeline.__all__
    for name in ava_pipeline.__all__:
        found = getattr(ava_pipeline, name)
        module = getattr(found, "__module__", "ava_pipeline.contract.tables")  # KEY_COLUMNS is a tuple
        assert found is getattr(importlib.import_module(module), name)
    assert set(ava_pipeline.__all__) <= set(dir(ava_pipeline))


def test_the_lists_of_public_names_agree() -> None:
    """The imports for type checkers, the modules imported on first use, and `__all__` name the same objects."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    errors_or_lazy = {
        name.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    public = {name: module for name, module in errors_or_lazy.items() if str(module).startswith("ava_pipeline.")}
    lazy = {name: module for name, module in public.items() if module != errors.__name__}
    assert lazy == ava_pipeline._MODULES
    assert set(public) == set(ava_pipeline.__all__)


def test_every_exception_is_public() -> None:
    """Programs catch errors without knowing the module they come from."""
    exceptions = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    assert exceptions <= set(ava_pipeline.__all__)


def test_no_package_hides_a_public_function() -> None:
    """Importing a module inside a package sets an attribute of `ava_pipeline`; it must not replace a function."""
    statement = (
        "import ava_pipeline.many_runs.datasets, ava_pipeline.evaluation.evaluate, ava_pipeline.diagnose.diagnose;"
        "from ava_pipeline import runs, evaluate;"
        "print(runs.__module__, evaluate.__module__, type(runs).__name__, type(evaluate).__name__)"
    )
    words = printed_by(statement)
    assert words == ["ava_pipeline.many_runs.datasets", "ava_pipeline.evaluation.evaluate", "function", "function"]
    names = {path.stem for path in PACKAGE.iterdir()}
    assert not names & set(ava_pipeline.__all__)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """A mistyped name is an AttributeError that lists the public names."""
    with pytest.raises(AttributeError, match="open_run"):
        _ = ava_pipeline.open_runs
