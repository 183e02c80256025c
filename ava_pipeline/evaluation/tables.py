"""Metrics and comparisons as tables on a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ava_pipeline.evaluation.against import Comparison
from ava_pipeline.evaluation.bootstrap import CONFIDENCE, SEED, Interval
from ava_pipeline.evaluation.evaluate import Evaluated
from ava_pipeline.metrics import Metrics
from ava_pipeline.terminal import add_metrics, metric_text, metric_title, metrics_table, plain_table, printable, rounded

_COLORS = {"better": "green", "worse": "red", "unclear": "dim"}


def show_evaluated(found: Sequence[Evaluated], *, generated: bool) -> None:
    """Print the metrics of each file."""
    Console().print(evaluated_table(found, generated=generated))


def show_comparison(found: Comparison, *, generated: bool) -> None:
    """Print a comparison: the metrics, where they come from, and the images that differ most."""
    console = Console()
    console.print(comparison_table(found, generated=generated))
    for line in comparison_lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.furthest:
        console.print()
        console.print(furthest_table(found))


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
