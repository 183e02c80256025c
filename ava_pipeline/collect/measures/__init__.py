"""The built-in measures, one file each, and how the collector uses them and the user's own."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from ava_pipeline.collect.measures.batch_stats import BatchStats
from ava_pipeline.collect.measures.gradient_norms import GradientNorms
from ava_pipeline.collect.measures.layer_stats import LayerStats
from ava_pipeline.collect.measures.learning_rates import LearningRates
from ava_pipeline.collect.measures.measure import Measure
from ava_pipeline.collect.measures.steps import Steps
from ava_pipeline.collect.measures.weight_deltas import WeightDeltas
from ava_pipeline.collect.measures.weight_norms import WeightNorms
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.collect.weight_pass import WeightPass
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.contract.builtin_tables import BUILT_IN_TABLES, PREDICTIONS, TRAIN_METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.tables import KEY_COLUMNS, Table
from ava_pipeline.errors import MisuseError
from ava_pipeline.interrupts import is_from_signal

DEFAULT_MEASURES: tuple[type[Measure], ...] = (GradientNorms, LearningRates, Steps)

MakeMeasure: TypeAlias = Callable[[TrainingTargets], Measure]


def built_in_measures(config: TelemetryConfig, weights: WeightPass) -> list[MakeMeasure]:
    """The measures that the settings ask for; `weights` is the one pass that several of them read."""
    asked: list[tuple[bool, MakeMeasure]] = [
        (config.track_gradients, GradientNorms),
        (config.track_learning_rates, LearningRates),
        (True, Steps),
        (config.track_weight_delta, partial(WeightNorms, weights=weights)),
        (config.track_weight_delta, partial(WeightDeltas, weights=weights)),
        (config.track_per_layer_stats, LayerStats),
        (config.track_batch_stats, partial(BatchStats, classes=config.label_classes)),
    ]
    return [measure for is_asked, measure in asked if is_asked]


def check_measures(measures: Sequence[type[Measure]]) -> tuple[type[Measure], ...]:
    """Raise MisuseError unless these are concrete subclasses of `Measure`, each with a table that can be used."""
    if not isinstance(measures, list | tuple):
        raise MisuseError(f"measures: expected a list of subclasses of Measure, got {measures!r}.")
    taken = {table.name.lower() for table in (*BUILT_IN_TABLES, TRAIN_METRICS, EVENTS, PREDICTIONS)}
    for measure in measures:
        if not (isinstance(measure, type) and issubclass(measure, Measure)):
            raise MisuseError(
                f"measures: expected subclasses of Measure, got {measure!r}: give the class, not an object."
            )
        missing = sorted(getattr(measure, "__abstractmethods__", ()))
        if missing:
            raise MisuseError(f"measures: {measure.__name__} does not define {', '.join(missing)}.")
        table = getattr(measure, "table", None)
        if not isinstance(table, Table) or table.columns[: len(KEY_COLUMNS)] != KEY_COLUMNS:
            raise MisuseError(
                f"measures: expected {measure.__name__}.table to be a Table whose columns begin with KEY_COLUMNS, "
                f"got {table!r}."
            )
        if table.name.lower() in taken:
            raise MisuseError(
                f"measures: the table name {table.name!r} of {measure.__name__} is taken: choose another one."
            )
        taken.add(table.name.lower())
    return tuple(measures)


def make_measures(
    built_in: Sequence[MakeMeasure],
    own: Sequence[type[Measure]],
    targets: TrainingTargets,
    *,
    on_failure: Callable[[type[Measure], Exception], None],
) -> list[Measure]:
    """Make the built-in measures and the user's own, except those of the user that raise.

    `on_failure` is given such a measure and its exception. Raise MisuseError if a run column has a name that cannot
    name a column, or the name of another column.
    """
    made = [measure(targets) for measure in built_in]
    for measure in made:
        measure.run_table  # noqa: B018  # names that clash are reported to the caller, here and now
    for measure_class in own:
        try:
            measure = measure_class(targets)
            measure.run_table  # noqa: B018  # as above
            made.append(measure)
        except MisuseError:
            raise
        except Exception as error:  # user code: its table is missing, and the training continues
            if is_from_signal(error):
                raise
            on_failure(measure_class, error)
    return made
