"""What `ava-pipeline compare` prints: the answers, then the details of each subject."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ava_pipeline.compare.answers import answers
from ava_pipeline.compare.compare import ColumnOf, Comparison
from ava_pipeline.compare.holdout import HoldoutComparison
from ava_pipeline.compare.layers import LayersComparison
from ava_pipeline.compare.values import Value, value_text
from ava_pipeline.compare.weights import LayerDistance, SnapshotComparison
from ava_pipeline.terminal import plain_table, print_whole_lines, printable

NUM_SHOWN = 10
_TEXT_COLUMNS = frozenset({"setting", "A", "B", "column", "state", "layer", "sample"})
_NONE = "–"  # noqa: RUF001  # a dash, on purpose.


def show_comparison(found: Comparison, console: Console) -> None:
    """Print the answers, which file is A and which is B, the tables of details, and what could not be read."""
    for line in [*answers(found), "", f"A: {printable(str(found.run_a))}", f"B: {printable(str(found.run_b))}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for table in _details(found):
        console.print()
        print_whole_lines(table, console)
    if found.tables_left_out:
        names = ", ".join(map(printable, found.tables_left_out))
        line = f"Not compared, because their rows are not those of batches: {names}."
        console.print(f"\n{line}", highlight=False, markup=False, soft_wrap=True)
    for problem in found.problems:
        for line in problem.lines():
            console.print(printable(line), style="red", highlight=False, markup=False, soft_wrap=True)


def _details(found: Comparison) -> Iterator[Table]:
    if found.settings:
        rows = ((one.name, *one.texts()) for one in found.settings)
        yield _table("Settings that differ", ("setting", "A", "B"), rows)
    differing = [one for one in found.columns() if one.column.state not in {"equal", "not measured"}]
    if differing:
        titles = ("column", "state", "from batch", "in A", "in B", "scatter", "unequal from", "rows unequal")
        yield _table("Columns that differ", titles, map(_column_row, differing))
    if found.holdout is not None and found.holdout.furthest:
        yield _samples(found.holdout)
    snapshots = [one for one in found.weights.snapshots if not one.is_equal] if found.weights else []
    if snapshots:
        yield _weights(snapshots[-1])
    elif found.layers is not None and any(one.first_unequal is not None for one in found.layers.layers):
        yield _layers(found.layers)


def _column_row(one: ColumnOf) -> Sequence[str]:
    column = one.column
    beyond, unequal = column.beyond_noise, column.first_unequal
    batch, texts, scatter = "", ("", ""), ""
    if beyond is not None:
        batch, texts = str(beyond.batch_idx), beyond.values.texts()
        scatter = "" if beyond.scatter is None else value_text(beyond.scatter, 3)
    elif unequal is not None:
        texts = unequal.values.texts()
    first = "" if unequal is None else str(unequal.batch_idx)
    return one.name, column.state, batch, *texts, scatter, first, f"{column.num_unequal} of {column.num_rows}"


def _samples(found: HoldoutComparison) -> Table:
    titles = ("sample", "batch", "distance", f"{', '.join(found.outputs)} in A", "in B", "prediction in A", "in B")
    rows = (
        (
            ", ".join(sample.ids),
            str(sample.batch_idx),
            "not finite" if sample.distance is None else value_text(sample.distance, 4),
            _outputs(sample.outputs_a),
            _outputs(sample.outputs_b),
            _number(sample.prediction_a),
            _number(sample.prediction_b),
        )
        for sample in found.furthest
    )
    return _table("Held-out samples that are furthest apart", titles, rows)


def _outputs(outputs: Sequence[Value]) -> str:
    return ", ".join(value_text(one, 4) for one in outputs)


def _weights(found: SnapshotComparison) -> Table:
    rows = [_weights_row(layer) for layer in found.layers[:NUM_SHOWN]]
    more = _more(len(found.layers))
    titles = ("layer", "L2 distance", "relative", "cosine", "norm in A", "in B")
    return _table(f"Layers at batch {found.batch_idx}, most different first{more}", titles, rows)


def _weights_row(layer: LayerDistance) -> Sequence[str]:
    numbers = (layer.l2_distance, layer.relative, layer.cosine, layer.norm_a, layer.norm_b)
    return layer.name, *map(_number, numbers)


def _layers(found: LayersComparison) -> Table:
    titles = ("layer", "unequal from", "batch", "norm in A", "in B", "mean in A", "in B", "std in A", "in B")
    rows = (
        (
            layer.name,
            _number(layer.first_unequal),
            str(layer.batch_idx),
            *layer.l2_norm.texts(),
            *layer.mean.texts(),
            *layer.std.texts(),
        )
        for layer in found.layers[:NUM_SHOWN]
    )
    return _table(f"Layers, most different first{_more(len(found.layers))}", titles, rows)


def _more(num: int) -> str:
    return f" ({NUM_SHOWN} of {num}; --json has all)" if num > NUM_SHOWN else ""


def _number(value: Value) -> str:
    return _NONE if value is None else value_text(value, 4)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = plain_table(title)
    for name in columns:
        is_text = name in _TEXT_COLUMNS
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
