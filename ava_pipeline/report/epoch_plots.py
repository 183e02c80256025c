"""Figures over epochs: a small one for each validation metric."""

from collections.abc import Iterator, Sequence

from ava_pipeline.report.figure import Figure, TextTable, Trace, number, plain
from ava_pipeline.report.run_data import EpochMetrics, RunData
from ava_pipeline.report.style import Style, styles_of

_TITLES = {
    "srcc": "SRCC (higher is better)",
    "plcc": "PLCC (higher is better)",
    "accuracy": "accuracy (higher is better)",
}
_HEIGHT = 240
_MAX_TICKS = 8


def figures_by_epoch(runs: Sequence[RunData]) -> Iterator[Figure]:
    """A figure a metric that some run has."""
    given = {seen.name: seen.metrics for seen in runs if seen.metrics is not None and seen.metrics.epochs}
    looks = styles_of(seen.name for seen in runs)
    names = dict.fromkeys(name for metrics in given.values() for name in metrics.figures)
    for name in names:
        having = {run: metrics for run, metrics in given.items() if name in metrics.figures}
        yield _figure(name, having, looks)


def _figure(name: str, given: dict[str, EpochMetrics], looks: dict[str, Style]) -> Figure:
    title = _TITLES.get(name, f"{name} (lower is better)")
    words = " ".join(_in_words(name, run, metrics) for run, metrics in given.items())
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(run),
            "legendgroup": run,
            "x": metrics.epochs,
            "y": metrics.figures[name],
            "line": {"color": looks[run].color, "dash": looks[run].dash, "width": 1.6},
            "marker": {"size": 5, "symbol": looks[run].symbol},
            "hovertemplate": "epoch %{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
        }
        for run, metrics in given.items()
    ]
    return Figure(
        name=f"metric-{name}",
        title=title,
        caption="",
        label=f"{title}, line plot over epochs. {words}",
        traces=traces,
        layout={
            "height": _HEIGHT,
            "xaxis": {"title": {"text": "epoch"}, "tickformat": "d"} | _ticks(given),
        },
        table=_table(name, given),
    )


def _ticks(given: dict[str, EpochMetrics]) -> dict[str, int]:
    """None between two epochs, where there are few."""
    epochs = [epoch for metrics in given.values() for epoch in metrics.epochs]
    return {"dtick": 1} if max(epochs) - min(epochs) <= _MAX_TICKS else {}


def _in_words(name: str, run: str, metrics: EpochMetrics) -> str:
    first, last = metrics.figures[name][0], metrics.figures[name][-1]
    return f"{run}: {number(first)} in epoch {metrics.epochs[0]}, {number(last)} in epoch {metrics.epochs[-1]}."


def _table(name: str, given: dict[str, EpochMetrics]) -> TextTable:
    """A row an epoch, a column a run."""
    values = {run: dict(zip(metrics.epochs, metrics.figures[name], strict=True)) for run, metrics in given.items()}
    epochs = sorted({epoch for one in values.values() for epoch in one})
    rows = [[str(epoch), *(number(one.get(epoch)) for one in values.values())] for epoch in epochs]
    return TextTable(["epoch", *values], rows)
