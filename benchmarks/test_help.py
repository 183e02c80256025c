"""How long `ava-pipeline --help` takes, against a Typer application that does nothing."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import pytest

from ava_pipeline import cli
from ava_pipeline.bench.results import Target
from benchmarks.judging import Bench

RATIO = Target(1.3)
_ROUNDS = 7


@pytest.fixture(scope="module")
def empty_application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Typer application as one module, with our commands, options and help texts, and empty functions."""
    path = tmp_path_factory.mktemp("empty") / "empty.py"
    path.write_text("\n".join([_HEAD, *map(_empty_command, cli.COMMANDS)]))
    return path


@pytest.mark.gate
@pytest.mark.parametrize("name", ["", *cli.COMMANDS], ids=lambda name: name or "all")
def test_help_over_an_empty_application(name: str, bench: Bench, empty_application: Path) -> None:
    """The ratio of medians, both in fresh interpreters and timed in turn."""
    if bench.is_tiny and name:
        pytest.skip("a run that only shows that everything runs needs one command")
    arguments = [*([name] if name else []), "--help"]
    ours = _interpreter(["-m", "ava_pipeline", *arguments])
    # Imported, so that Python keeps its byte code as it does for ours.
    code = f"import sys; sys.path.insert(0, {str(empty_application.parent)!r}); import empty; empty.app()"
    empty = _interpreter(["-c", code, *arguments])
    bench.judge(bench.ratio(ours, empty, _ROUNDS), RATIO, name="ratio")


_HEAD = """
from enum import StrEnum
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
"""


def _empty_command(name: str) -> str:
    """The signature of a command, without the callbacks of its options, and its docstring."""
    module = importlib.import_module(f"ava_pipeline.{cli.COMMANDS[name].package}.command")
    function = getattr(module, f"{name}_command")
    lines = inspect.getsource(function).splitlines()
    body = next(index for index, line in enumerate(lines) if line.lstrip().startswith(('"""', 'r"""')))
    signature = "\n".join(lines[:body])
    for parameter in ("parser=_path_of,", ", callback=_list_rules"):
        signature = signature.replace(parameter, "")
    constants = [
        f"{key} = {value!r}" for key, value in vars(module).items() if key.isupper() and isinstance(value, int)
    ]
    choices = [
        inspect.getsource(value)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, StrEnum) and value.__module__ == module.__name__
    ]
    return "\n".join([*constants, *choices, f"@app.command({name!r})", signature, f"    {function.__doc__!r}", ""])


def _interpreter(arguments: list[str]) -> Callable[[], object]:
    """Run a fresh interpreter to its end."""

    def run() -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # fixed arguments

    return run
