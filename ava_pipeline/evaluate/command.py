"""The command line of an evaluation."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.evaluate.against import Comparison, compare
from ava_pipeline.evaluate.evaluated import NUM_RESAMPLES, Evaluated, evaluate, prediction_paths
from ava_pipeline.evaluate.tables import comparison_lines, comparison_table, evaluated_table, furthest_table
from ava_pipeline.printed import plain
from ava_pipeline.read.generated import is_generated


def evaluate_command(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_PARQUET", help="A run directory, or a file of predictions.")],
    *,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Another run or file, to compare with image by image.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the images, for the intervals; 0: none.")
    ] = NUM_RESAMPLES,
    as_json: Annotated[bool, typer.Option("--json", help="For programs; null where a figure is not defined.")] = False,
) -> None:
    """Print the metrics of validation predictions, beside the constant predictor's.

    Example: ava-pipeline evaluate outputs/ava/demo

    Example: ava-pipeline evaluate outputs/ava/demo --against outputs/ava/other

    Below each figure stands between which values it lies for 95 % of the
    resamples of the images (percentile bootstrap, always the same seed).
    --against pairs the images by image_id and resamples both sides alike; of a
    run, the last epoch counts: give a file of predictions for another one.
    A file that cannot be read is told, and the others are evaluated.
    Exit status: 0 well, 1 a file cannot be read or holds no predictions,
    2 nothing there or wrong usage.
    """
    generated = is_generated(path) or (against is not None and is_generated(against))
    if against is not None:
        found = _compare(path, against, resamples)
        _print_json({"generated": generated, **found.to_json()}) if as_json else _show(found, generated=generated)
        return
    files, problems = _evaluated(path, resamples)
    if as_json:
        _print_json({"generated": generated, "files": [one.to_json() for one in files], "problems": problems})
    elif files:
        Console().print(evaluated_table(files, generated=generated))
    for problem in problems.values():
        typer.echo(plain(problem), err=True)
    raise typer.Exit(int(bool(problems)))


def _evaluated(path: Path, resamples: int) -> tuple[list[Evaluated], dict[str, str]]:
    """Each file by itself, with what is wrong with those that cannot be read."""
    files: list[Evaluated] = []
    problems: dict[str, str] = {}
    paths, console = prediction_paths(path), Console(stderr=True)
    is_shown = console.is_terminal and len(paths) > 1
    for file in track(paths, "evaluating", console=console, transient=True, disable=not is_shown):
        try:
            files.append(evaluate(file, num_resamples=resamples))
        except DamagedFileError as error:
            problems[str(file)] = str(error)
    return files, problems


def _compare(path: Path, against: Path, resamples: int) -> Comparison:
    if not resamples:
        raise typer.BadParameter("--against is about intervals; give --resamples 1 or more, or leave it out.")
    try:
        return compare(path, against, num_resamples=resamples)
    except MisuseError as error:
        raise typer.BadParameter(str(error)) from error


def _show(found: Comparison, *, generated: bool) -> None:
    console = Console()
    console.print(comparison_table(found, generated=generated))
    for line in comparison_lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.furthest:
        console.print()
        console.print(furthest_table(found))


def _print_json(values: object) -> None:
    typer.echo(json.dumps(values, indent=1))
