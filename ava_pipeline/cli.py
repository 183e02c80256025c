"""The command `ava-pipeline`: a table of commands, each imported when it is called."""

import logging
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from ava_pipeline import __version__
from ava_pipeline.errors import AvaPipelineError, ExitStatus, exit_status

if TYPE_CHECKING:
    from rich.logging import RichHandler


TRACEBACK = "AVA_PIPELINE_TRACEBACK"
_NAME = "ava-pipeline"


class Entry(NamedTuple):
    """A command before it is imported.

    Attributes:
        package: the package whose `command.py` holds the function `<name>_command`.
        help: the first line of that function's docstring.
    """

    package: str
    help: str


COMMANDS = {
    "train": Entry("train", "Train a model from a YAML config, with telemetry and validation predictions."),
    "evaluate": Entry("evaluation", "Print the metrics of validation predictions next to a constant predictor's."),
    "validate": Entry("validate", "Check runs against their contract: tables, predictions, metrics and manifest."),
    "diagnose": Entry("diagnose", "Report warning signs and healthy signs in a run's numbers, with what to try."),
    "recover": Entry("write", "Repair a run that was killed or damaged, and list what was saved and what is lost."),
    "runs": Entry("many_runs", "List runs, one per line: status, best metrics, settings that differ, first finding."),
    "compare": Entry("compare", "Compare two runs: where do they part, in settings, tables, samples and weights?"),
    "watch": Entry("watch", "Follow a running job in the terminal: events, norms, rates, values and delay."),
    "report": Entry("report", "Write an HTML page of one or several runs: findings, plots and tables."),
    "plot": Entry("report", "Draw the gradient norms of a run as a picture."),
    "export": Entry("integrations", "Show a run, live or old, in TensorBoard, Weights & Biases or MLflow."),
    "bench": Entry("bench", "Measure what telemetry costs on this machine, and compare it with the targets."),
}


class _PlainFlags:
    """Shows no type after a flag: `--json` takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # mixed into a command
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class _Command(_PlainFlags, TyperCommand):
    """Leaves hidden arguments out of the usage line."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        shown = [param for param in self.get_params(ctx) if not getattr(param, "hidden", False)]
        return [str(self.options_metavar), *(piece for param in shown for piece in param.get_usage_pieces(ctx))]


class _CommandTable(_PlainFlags, TyperGroup):
    """Lists the commands of the table, and imports the one that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, short_help=entry.help) for name, entry in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if listed is None else load_command(str(listed.name)), rest


def load_command(name: str) -> Any:
    """Import a command and build what parses its options."""
    function = getattr(import_module(f"ava_pipeline.{COMMANDS[name].package}.command"), f"{name}_command")
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command(name, cls=_Command)(function)
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=_CommandTable,
    name=_NAME,
    help="Train models that predict aesthetic scores on AVA, and inspect the telemetry of training runs.\n\n"
    "Exit status: 0 success, 1 problems found, 2 wrong usage, 3 an internal error, 128 + N ended by signal N.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_given: bool) -> None:  # noqa: FBT001  # typer passes the option's value by position
    if is_given:
        typer.echo(__version__)
        raise typer.Exit(ExitStatus.SUCCESS)


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    An error is one sentence on stderr; its traceback is shown only if AVA_PIPELINE_TRACEBACK is set.

    Args:
        arguments: the words after `ava-pipeline`; by default those of this process.
    """
    logging.basicConfig(level=logging.INFO, handlers=[_LogHandler()])
    logging.captureWarnings(capture=True)
    try:
        app(arguments, prog_name=_NAME)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        from rich.console import Console  # noqa: PLC0415  # most calls print without rich

        console = Console(stderr=True)
        console.print(_sentence(error), style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(exit_status(error))


class _LogHandler(logging.Handler):
    """Prints log records with rich, which is imported for the first of them."""

    def emit(self, record: logging.LogRecord) -> None:
        self._rich.emit(record)

    @cached_property
    def _rich(self) -> "RichHandler":
        from rich.console import Console  # noqa: PLC0415  # most calls log nothing
        from rich.logging import RichHandler  # noqa: PLC0415

        console = Console(stderr=True)
        return RichHandler(console=console, show_time=False, show_path=False, markup=False, highlighter=None)


def _sentence(error: Exception) -> str:
    if isinstance(error, AvaPipelineError):
        return str(error)
    return f"Internal error: {type(error).__name__}: {error}. Set {TRACEBACK}=1 and run the command again to see where."
