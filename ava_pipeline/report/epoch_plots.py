"""Figures over epochs, or over single batches of them: a small plot for each metric that was logged."""

from collections.abc import Iterator, Sequence

from ava_pipeline.report.figure import Figure, Style, TextTable, Trace, label_text, number_text, styles_of
from ava_pipeline.report.run_data import MetricHistory, RunData

_TITLES = {
    "srcc": "SRCC (higher is better)",
    "plcc": "PLCC (higher is better)",
    "accuracy": "accuracy (higher is better)",
    **{name: f"{name} (lower is better)" for name in ("train_loss", "val_loss", "emd_r1", "emd_r2", "mae", "rmse")},
}
_HEIGHT_PX = 240
_MAX_TICKS = 8


def figures_by_epoch(runs: Sequence[RunData]) -> Iterator[Figure]:
    """A figure for each metric that a run has at the end of epochs, then one for each that it has after batches."""
    styles = styles_of(run.name for run in runs)
    for of_epochs in (True, False):
        metrics_of = {run.name: run.metrics.select(of_epochs=of_epochs) for run in runs if run.metrics is not None}
        names = dict.fromkeys(name for metrics in metrics_of.values() for name in metrics.values)
        for name in names:
            with_metric = {run: metrics for run, metrics in metrics_of.items() if name in metrics.values}
            yield _figure(name, with_metric, styles, of_epochs=of_epochs)


def _figure(name: str, metrics_of: dict[str, MetricHistory], styles: dict[str, Style], *, of_epochs: bool) -> Figure:
    unit = "epoch" if of_epochs else "batch"
    title = _TITLES.get(name, name) + ("" if of_epochs else ", by batch")
    words = " ".join(_in_words(name, run, metrics) for run, metrics in metrics_of.items())
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label_text(run),
            "legendgroup": run,
            "x": _places(metrics),
            "y": metrics.values[name],
            "line": {"color": styles[run].color, "dash": styles[run].dash, "width": 1.6},
            "marker": {"size": 5, "symbol": styles[run].symbol},
            "hovertemplate": f"{unit} %{{x}}: %{{y:.4f}}<extra>%{{fullData.name}}</extra>",
        }
        for run, metrics in metrics_of.items()
    ]
    return Figure(
        name=f"metric-{name}" if of_epochs else f"metric-by-batch-{name}",
        title=title,
        caption="",
        label=f"{title}, line plot over {'epochs' if of_epochs else 'batches'}. {words}",
        traces=traces,
        layout={"height": _HEIGHT_PX, "xaxis": {"title": {"text": unit}, "tickformat": "d"} | _ticks(metrics_of)},
        table=_table(name, metrics_of, unit),
    )


def _places(metrics: MetricHistory) -> list[int]:
    """Where the moments are on the axis: batches, or else epochs."""
    return [moment.epoch if moment.batch_idx is None else moment.batch_idx for moment in metrics.moments]


def _ticks(metrics_of: dict[str, MetricHistory]) -> dict[str, int]:
    """A tick at each epoch if there are few epochs, and so none between two epochs."""
    places = [place for metrics in metrics_of.values() for place in _places(metrics)]
    return {"dtick": 1} if max(places) - min(places) <= _MAX_TICKS else {}


def _in_words(name: str, run: str, metrics: MetricHistory) -> str:
    first, last = (number_text(metrics.values[name][place]) for place in (0, -1))
    return f"{run}: {first} in {metrics.moments[0]}, {last} in {metrics.moments[-1]}."


def _table(name: str, metrics_of: dict[str, MetricHistory], unit: str) -> TextTable:
    columns = {
        run: dict(zip(_places(metrics), metrics.values[name], strict=True)) for run, metrics in metrics_of.items()
    }
    places = sorted({place for column in columns.values() for place in column})
    rows = [[str(place), *(number_text(column.get(place)) for column in columns.values())] for place in places]
    return TextTable([unit, *columns], rows)
