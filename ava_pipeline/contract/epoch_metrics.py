"""metrics.csv: how well the model predicts after each epoch of `ava-pipeline train`."""

from ava_pipeline.contract.tables import Column, Table


def _figure(name: str, description: str, *, not_below: int | None = None) -> Column:
    return Column(name=name, dtype="float64", description=description, not_below=not_below)


EPOCH_METRICS = Table(
    name="metrics",
    description="Validation metrics, a row an epoch. nan: not defined, as a correlation with a constant.",
    columns=(
        Column(name="epoch", dtype="int64", description="0-based epoch.", not_below=0),
        _figure("train_loss", "Mean training loss of the epoch."),
        _figure("emd_r1", "Mean absolute difference of the cumulative distributions.", not_below=0),
        _figure("emd_r2", "Mean over images of the root mean squared CDF difference.", not_below=0),
        _figure("srcc", "Spearman's rank correlation of the mean scores.", not_below=-1),
        _figure("plcc", "Pearson's correlation of the mean scores.", not_below=-1),
        _figure("accuracy", "Share of images on the right side of a mean score of 5.", not_below=0),
        _figure("mae", "Mean absolute error of the mean scores, in score points.", not_below=0),
        _figure("rmse", "Root mean squared error of the mean scores, in score points.", not_below=0),
    ),
)
