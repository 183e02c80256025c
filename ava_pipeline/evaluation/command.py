"""The command `ava-pipeline evaluate`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_pipeline.errors import DamagedFileError, ExitStatus, MisuseError

if TYPE_CHECKING:
    from rich.table import Table

    from ava_pipeline.evaluation.against import Comparison
    from ava_pipeline.evaluation.evaluate import Evaluation
    from ava_pipeline.evaluation.pairs import PairMetrics


NUM_RESAMPLES = 1000


def evaluate_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_PARQUET", help="A run directory, or a Parquet file of predictions.", show_default=False
        ),
    ],
    *,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Another run or file to compare with, image by image.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, metavar="N", help="Bootstrap resamples for the intervals; 0 prints no intervals.")
    ] = NUM_RESAMPLES,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for programs; undefined figures are null.")
    ] = False,
) -> None:
    """Print the metrics of validation predictions next to a constant predictor's.

    Example: ava-pipeline evaluate outputs/ava/demo

    Example: ava-pipeline evaluate outputs/ava/demo --against outputs/ava/other

    The lines "from" and "to" below a file are the ends of its 95 % intervals
    (percentile bootstrap over the images, always with the same seed).
    --against pairs the images by image_id and draws the same images for both
    sides. Of a run, the last epoch is compared; give a file for another epoch.
    Files that cannot be read are named, and the others are evaluated. Of a run
    without such predictions, epoch_*/*/metrics/eval_dump.csv is evaluated, the
    predictions of pairs that another program left.

    Exit status: 0 success, 1 a file cannot be read or holds no predictions,
    2 no predictions or wrong usage.
    """
    from rich.console import Console

    from ava_pipeline.read.predictions import is_generated
    from ava_pipeline.terminal import printable

    generated = is_generated(path) or (against is not None and is_generated(against))
    if against is not None:
        from ava_pipeline.evaluation.against import show_comparison

        found = _compare(path, against, resamples)
        if as_json:
            _print_json({"generated": generated, **found.to_json()})
        else:
            show_comparison(found, generated=generated)
        return
    pairs = _pairs_of(path)
    if pairs:
        _show_pairs(pairs, as_json=as_json)
        return
    files, problems = _evaluate_each(path, resamples)
    if as_json:
        _print_json({"generated": generated, "files": [file.to_json() for file in files], "problems": problems})
    elif files:
        Console().print(_metrics_table(files, generated=generated))
    for problem in problems.values():
        typer.echo(printable(problem), err=True)
    raise typer.Exit(ExitStatus.PROBLEMS if problems else ExitStatus.SUCCESS)


def _pairs_of(path: Path) -> list["PairMetrics"]:
    """The sets of pairs of a run that has no predictions of scores."""
    from ava_pipeline.contract.layout import RunLayout, prediction_files
    from ava_pipeline.evaluation.pairs import evaluate_pairs

    return [] if not path.is_dir() or prediction_files(RunLayout(path)) else evaluate_pairs(path)


def _show_pairs(pairs: Sequence["PairMetrics"], *, as_json: bool) -> None:
    from rich.console import Console

    from ava_pipeline.evaluation.pairs import pairs_table

    if as_json:
        _print_json({"generated": False, "pairs": [found.to_json() for found in pairs], "problems": {}})
    else:
        Console().print(pairs_table(pairs))


def _evaluate_each(path: Path, resamples: int) -> tuple[list["Evaluation"], dict[str, str]]:
    """Evaluate each file on its own; files that cannot be read are returned by path, with the reason."""
    from rich.console import Console
    from rich.progress import track

    from ava_pipeline.evaluation.evaluate import evaluate, prediction_paths

    files: list[Evaluation] = []
    problems: dict[str, str] = {}
    paths, console = prediction_paths(path), Console(stderr=True)
    is_shown = console.is_terminal and len(paths) > 1
    for file in track(paths, "evaluating", console=console, transient=True, disable=not is_shown):
        try:
            files.append(evaluate(file, num_resamples=resamples))
        except DamagedFileError as error:
            problems[str(file)] = str(error)
    return files, problems


def _compare(path: Path, against: Path, resamples: int) -> "Comparison":
    from ava_pipeline.evaluation.against import compare

    if not resamples:
        raise typer.BadParameter("--against needs intervals; give --resamples 1 or more, or leave the option out.")
    try:
        return compare(path, against, num_resamples=resamples)
    except MisuseError as error:
        raise typer.BadParameter(str(error)) from error


def _metrics_table(files: Sequence["Evaluation"], *, generated: bool) -> "Table":
    """A line for each file, its interval below it, and a line for the constant predictor of the last file."""
    from rich.text import Text

    from ava_pipeline.evaluation.evaluate import method_text
    from ava_pipeline.terminal import add_metrics, metrics_table, printable

    table = metrics_table("Metrics of predictions", ["file", "images"], generated=generated)
    for file in files:
        add_metrics(table, [file.path.stem, str(file.num_images)], file.metrics)
        if file.interval is not None:
            add_metrics(table, ["  from", ""], file.interval.low, style="dim")
            add_metrics(table, ["  to", ""], file.interval.high, style="dim")
    last = files[-1]
    add_metrics(table, ["constant", str(last.num_images)], last.constant)
    caption = f"constant: predicts the mean true distribution of {printable(last.path.name)} for every image."
    if last.interval is not None:
        caption += f"\nfrom, to: {method_text(last.interval)}."
    table.caption, table.caption_justify = Text(caption, style="dim italic"), "left"
    return table


def _print_json(values: object) -> None:
    typer.echo(json.dumps(values, indent=1))
