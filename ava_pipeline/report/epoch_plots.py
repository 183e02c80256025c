"""Figures over epochs: a small plot for each validation metric."""

from collections.abc import Iterator, Sequence

from ava_pipeline.report.figure import Figure, Style, TextTable, Trace, label_text, number_text, styles_of
from ava_pipeline.report.run_data import EpochMetrics, RunData

_TITLES = {
    "srcc": "SRCC (higher is better)",
    "plcc": "PLCC (higher is better)",
    "accuracy": "accuracy (higher is better)",
}
_HEIGHT_PX = 240
_MAX_TICKS = 8


def figures_by_epoch(runs: Sequence[RunData]) -> Iterator[Figure]:
    """A figure for each metric that a run has."""
    metrics_of = {run.name: run.metrics for run in runs if run.metrics is not None and run.metrics.epochs}
    styles = styles_of(run.name for run in runs)
    names = dict.fromkeys(name for metrics in metrics_of.values() for name in metrics.values)
    for name in names:
        with_metric = {run: metrics for run, metrics in metrics_of.items() if name in metrics.values}
        yield _figure(name, with_metric, styles)


def _figure(name: str, metrics_of: dict[str, EpochMetrics], styles: dict[str, Style]) -> Figure:
    title = _TITLES.get(name, f"{name} (lower is better)")
    words = " ".join(_in_words(name, run, metrics) for run, metrics in metrics_of.items())
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label_text(run),
            "legendgroup": run,
            "x": metrics.epochs,
            "y": metrics.values[name],
            "line": {"color": styles[run].color, "dash": styles[run].dash, "width": 1.6},
            "marker": {"size": 5, "symbol": styles[run].symbol},
            "hovertemplate": "epoch %{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
        }
        for run, metrics in metrics_of.items()
    ]
    return Figure(
        name=f"metric-{name}",
        title=title,
        caption="",
        label=f"{title}, line plot over epochs. {words}",
        traces=traces,
        layout={"height": _HEIGHT_PX, "xaxis": {"title": {"text": "epoch"}, "tickformat": "d"} | _ticks(metrics_of)},
        table=_table(name, metrics_of),
    )


def _ticks(metrics_of: dict[str, EpochMetrics]) -> dict[str, int]:
    """A tick at each epoch if there are few epochs, and so none between two epochs."""
    epochs = [epoch for metrics in metrics_of.values() for epoch in metrics.epochs]
    return {"dtick": 1} if max(epochs) - min(epochs) <= _MAX_TICKS else {}


def _in_words(name: str, run: str, metrics: EpochMetrics) -> str:
    first, last = (number_text(metrics.values[name][place]) for place in (0, -1))
    return f"{run}: {first} in epoch {metrics.epochs[0]}, {last} in epoch {metrics.epochs[-1]}."


def _table(name: str, metrics_of: dict[str, EpochMetrics]) -> TextTable:
    columns = {run: dict(zip(metrics.epochs, metrics.values[name], strict=True)) for run, metrics in metrics_of.items()}
    epochs = sorted({epoch for column in columns.values() for epoch in column})
    rows = [[str(epoch), *(number_text(column.get(epoch)) for column in columns.values())] for epoch in epochs]
    return TextTable(["epoch", *columns], rows)
