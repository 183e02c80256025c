"""The command `ava-pipeline train`."""

import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_pipeline.errors import SIGNAL_STATUS, require_extra

if TYPE_CHECKING:
    from ava_pipeline.config.models import RunConfig


def train_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML config.", show_default=False)],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Override a setting of the config; may be repeated."),
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(metavar="PATH", help="The run's directory, instead of the config's output_dir.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint; start if there is none yet.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over in a used directory; its files move to superseded/.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings only, no progress or tables.")] = False,
) -> None:
    """Train a model from a YAML config, with telemetry and validation predictions.

    Example: ava-pipeline train configs/demo.yaml --set train.epochs=3 --output-dir outputs/ava/try

    Ctrl-C, SIGTERM and SIGUSR1 end training after the current batch, with a
    checkpoint. The exit status is then 128 plus the number of the signal (130,
    143, 138 on Linux). To continue, run the same command with --resume instead
    of --restart. A second Ctrl-C ends it immediately.
    """
    if resume and restart:
        raise typer.BadParameter("--resume continues a run, --restart starts over; give only one of them.")
    from ava_pipeline.config.load import load_config

    overrides = [*(settings or []), *([] if output_dir is None else [f"output_dir={json.dumps(output_dir)}"])]
    logging.getLogger("ava_pipeline").setLevel(logging.WARNING if quiet else logging.INFO)
    loaded = load_config(config, overrides)
    try:
        stopped_by = _train(loaded, resume=resume, restart=restart, quiet=quiet)
    except KeyboardInterrupt as error:
        # While it trains on batches, Ctrl-C only asks for an end and raises nothing.
        remedy = "run the same command again" if restart else "run the same command with --resume to start or continue"
        typer.echo(f"Ended by Ctrl-C before training began. Nothing is lost: {remedy}.", err=True)
        raise typer.Exit(SIGNAL_STATUS + signal.SIGINT) from error
    if stopped_by is not None:
        raise typer.Exit(SIGNAL_STATUS + stopped_by)


def _train(config: "RunConfig", *, resume: bool, restart: bool, quiet: bool) -> int | None:
    """Train and print a summary; return the signal that asked training to end, if any."""
    require_extra("Training", "train", "torch", "torchvision")
    from rich.console import Console

    from ava_pipeline.train.display import Display, show_summary
    from ava_pipeline.train.job import train

    outcome = train(config, Display(Console(stderr=True, quiet=quiet)), resume=resume, restart=restart)
    show_summary(outcome, Console(quiet=quiet))
    return outcome.stopped_by
