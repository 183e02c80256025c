"""The command `ava-pipeline`: each command is a small function; torch is imported only where it trains."""

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from ava_pipeline import __version__
from ava_pipeline.bench.command import bench_command
from ava_pipeline.config.load import load_config
from ava_pipeline.config.models import RunConfig
from ava_pipeline.diagnose.diagnose import diagnose_run
from ava_pipeline.errors import AvaPipelineError, ConfigError, GroupsError, MisuseError, NotARunError, RunExistsError
from ava_pipeline.evaluation.command import evaluate_command
from ava_pipeline.many_runs.command import runs_command
from ava_pipeline.report.command import plot_command, report_command
from ava_pipeline.validate.command import validate_command
from ava_pipeline.watch.command import watch_command
from ava_pipeline.write.recover import recover_run

WELL, PROBLEMS, WRONG_USAGE, OUR_ERROR = 0, 1, 2, 3
TRACEBACK = "AVA_PIPELINE_TRACEBACK"
_BY_SIGNAL = 128
_BEFORE_TRAINING = "Ended by Ctrl-C before training began. Nothing is lost: "

app = typer.Typer(
    name="ava-pipeline",
    help="Train aesthetic score prediction on AVA with gradient telemetry, and look at what came of it.\n\n"
    "Exit status: 0 well, 1 problems found, 2 wrong usage, 3 an error of ours; 128 + N: ended by signal N.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it with the option's value.
    if wanted:
        typer.echo(__version__)
        raise typer.Exit(WELL)


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None: ...


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML config.")],
    *,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="A setting in place of the config's.")
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(metavar="PATH", help="The run's directory, in place of the config's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint; where there is none yet, begin.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew in a used directory; its files move to superseded/.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables; warnings still.")] = False,
) -> None:
    """Train a model as a YAML config says, with telemetry and validation predictions.

    Example: ava-pipeline train configs/demo.yaml --set train.epochs=3 --output-dir outputs/ava/try

    Ctrl-C, SIGTERM and SIGUSR1 end training after the batch, with a checkpoint.
    The exit status is then 128 + the signal's number (130, 143, 138 on Linux),
    and the same command with --resume, in place of --restart, goes on. A second
    Ctrl-C ends at once.
    """
    if resume and restart:
        raise typer.BadParameter("--resume goes on with a run, --restart begins anew; give one of them.")
    overrides = [*(settings or []), *([] if output_dir is None else [f"output_dir={json.dumps(output_dir)}"])]
    logging.getLogger("ava_pipeline").setLevel(logging.WARNING if quiet else logging.INFO)
    loaded = load_config(config, overrides)
    try:
        stopped_by = _train(loaded, resume=resume, restart=restart, quiet=quiet)
    except KeyboardInterrupt as error:
        # While batches are trained, Ctrl-C asks and does not interrupt.
        way_on = "give the same command again." if restart else "go on, or begin, with the same command and --resume."
        _console(err=True).print(_BEFORE_TRAINING + way_on, highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(_BY_SIGNAL + signal.SIGINT) from error
    if stopped_by is not None:
        raise typer.Exit(_BY_SIGNAL + stopped_by)


def _train(config: RunConfig, *, resume: bool, restart: bool, quiet: bool) -> int | None:
    """Train and show what came of it; return the signal that asked for an end, if one did."""
    _need_torch()
    from ava_pipeline.train.display import Display  # noqa: PLC0415  # the other commands work without torch.
    from ava_pipeline.train.job import train  # noqa: PLC0415
    from ava_pipeline.train.summary import show_summary  # noqa: PLC0415

    outcome = train(config, Display(_console(err=True, quiet=quiet)), resume=resume, restart=restart)
    show_summary(outcome, _console(quiet=quiet))
    return outcome.stopped_by


app.command("evaluate")(evaluate_command)


app.command("validate")(validate_command)


@app.command("diagnose")
def diagnose_command(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a run's numbers show: warning signs with what to try, and healthy signs.

    Example: ava-pipeline diagnose outputs/ava/demo

    Works while the run is being written, after a crash and afterwards.
    Exit status: 0 healthy, or too few rows to tell; 1 a warning or worse was
    found; 2 no run or wrong usage.
    """
    found = diagnose_run(run)
    typer.echo(json.dumps({"run": str(run), **found.to_json()}, indent=1) if as_json else found.to_text(str(run)))
    raise typer.Exit(PROBLEMS if found.verdict == "not healthy" else WELL)


@app.command("recover")
def recover_command(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Bring a run that was killed or damaged to whole files: journals become Parquet, torn lines are cut.

    Example: ava-pipeline recover outputs/ava/demo --dry-run

    For each table it says what was there, what was saved and what was lost.
    Damaged originals are kept in telemetry/damaged/.
    The next training in the directory does the same by itself.
    Exit status: 0 nothing lost, 1 something lost, 2 no run, one that is being
    written, or wrong usage.
    """
    try:
        found = recover_run(run, dry_run=dry_run)
    except MisuseError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())
    raise typer.Exit(WELL if found.is_complete else PROBLEMS)


app.command("runs")(runs_command)
app.command("watch")(watch_command)
app.command("report")(report_command)
app.command("plot")(plot_command)
app.command("bench")(bench_command)


def main() -> None:
    """Run the command line and end with its exit status: one sentence for every error, no traceback."""
    console = _console(err=True)
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[_log_handler(console)])
    logging.captureWarnings(capture=True)
    try:
        app()
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        console.print(_sentence(error), style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(_status(error))


def _console(*, err: bool = False, quiet: bool = False) -> Console:
    return Console(stderr=err, quiet=quiet)


def _log_handler(console: Console) -> RichHandler:
    return RichHandler(console=console, show_time=False, show_path=False, markup=False, highlighter=None)


def _status(error: Exception) -> int:
    if isinstance(error, ConfigError | GroupsError | MisuseError | RunExistsError | NotARunError):
        return WRONG_USAGE
    return PROBLEMS if isinstance(error, AvaPipelineError) else OUR_ERROR


def _sentence(error: Exception) -> str:
    if isinstance(error, AvaPipelineError):
        return str(error)
    return f"An error of ours: {type(error).__name__}: {error}. Set {TRACEBACK}=1 and run it again to see where."


def _need_torch() -> None:
    try:
        import torch  # noqa: F401, PLC0415  # only to see whether it is there.
        import torchvision  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"Training needs {error.name}: pip install 'ava-pipeline[train]'.") from error
