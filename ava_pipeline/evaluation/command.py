"""The command `ava-pipeline evaluate`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.evaluation.against import Comparison, compare
from ava_pipeline.evaluation.bootstrap import CONFIDENCE, SEED, Interval
from ava_pipeline.evaluation.evaluate import NUM_RESAMPLES, Evaluated, evaluate, prediction_paths
from ava_pipeline.metrics import Metrics
from ava_pipeline.read.predictions import is_generated
from ava_pipeline.terminal import add_metrics, metric_text, metric_title, metrics_table, plain_table, printable, rounded

_COLORS = {"better": "green", "worse": "red", "unclear": "dim"}


def evaluated_table(found: Sequence[Evaluated], *, generated: bool) -> Table:
    """A line a file, its interval below it, and the constant predictor's."""
    table = metrics_table("Metrics of predictions", ["file", "images"], generated=generated)
    for one in found:
        add_metrics(table, [one.path.stem, str(one.num_images)], one.metrics)
        for name, end in _ends(one.interval):
            add_metrics(table, [name, ""], end, style="dim")
    last = found[-1]
    add_metrics(table, ["constant", str(last.num_images)], last.constant)
    table.caption = Text(_caption(last), style="dim italic")
    table.caption_justify = "left"
    return table


def comparison_table(found: Comparison, *, generated: bool) -> Table:
    """A line a metric: of both, their difference, its interval, and what that says."""
    table = plain_table(f"Two sets of predictions on {found.num_images} images", generated=generated)
    for name in ("metric", "A", "B", "A - B", "from", "to", "A is"):
        table.add_column(name, justify="left" if name in {"metric", "A is"} else "right", no_wrap=True)
    low, high, first, second = (
        asdict(one) for one in (found.difference.low, found.difference.high, found.metrics, found.other_metrics)
    )
    for name, difference in found.differences().items():
        verdict = found.verdicts()[name]
        figures = (values[name] for values in (first, second))
        signed = (rounded(value, sign=True) for value in (difference, low[name], high[name]))
        row = [metric_title(name), *(metric_text(name, value) for value in figures), *signed]
        table.add_row(*row, Text(verdict, style=_COLORS[verdict]))
    return table


def comparison_lines(found: Comparison) -> Iterator[str]:
    """What stands below the table: which files, on which images, and how the intervals were found."""
    yield f"A: {printable(str(found.path))}"
    yield f"B: {printable(str(found.other_path))}"
    if found.num_only or found.num_only_other:
        yield f"Left out: {found.num_only} images in A alone, {found.num_only_other} in B alone."
    if found.num_other_truth:
        yield f"For {found.num_other_truth} images the truth is another one in B; each file is held to its own."
    yield f"from, to: {_way(found.difference)}, the same images drawn for A and B."


def furthest_table(found: Comparison) -> Table:
    """The images whose predicted means differ most."""
    table = plain_table("The images on which they differ most")
    for name in ("image", "true mean", "A", "B", "A - B"):
        table.add_column(name, justify="left" if name == "image" else "right", no_wrap=True)
    for image in found.furthest:
        figures = (image.gt_mean, image.pred_mean, image.other_mean)
        difference = rounded(image.pred_mean - image.other_mean, 3, sign=True)
        table.add_row(Text(printable(str(image.image_id))), *(rounded(value, 3) for value in figures), difference)
    return table


def _ends(found: Interval | None) -> list[tuple[str, Metrics]]:
    return [] if found is None else [("  from", found.low), ("  to", found.high)]


def _caption(last: Evaluated) -> str:
    constant = f"constant: predicts the mean true distribution of {printable(last.path.name)} for every image."
    return constant if last.interval is None else f"{constant}\nfrom, to: {_way(last.interval)}."


def _way(found: Interval) -> str:
    return f"{CONFIDENCE:.0%} of {found.num_resamples} resamples of the images (percentile bootstrap, seed {SEED})"


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
        typer.echo(printable(problem), err=True)
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
