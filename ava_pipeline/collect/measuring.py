"""What is measured now: the targets, the measures that were made for them, and the setup of their tables."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ava_pipeline.collect.call_checks import CallChecks
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.holdout import HoldoutPlace
from ava_pipeline.collect.measures import built_in_measures, make_measures
from ava_pipeline.collect.measures.holdout_predictions import HoldoutPredictions
from ava_pipeline.collect.measures.measure import Measure
from ava_pipeline.collect.samples import HoldoutQuestion
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.collect.undisturbed import Autocast
from ava_pipeline.collect.weight_pass import WeightPass
from ava_pipeline.config.models import TelemetryConfig
from ava_pipeline.interrupts import is_from_signal
from ava_pipeline.write.setup import Setup


class Measuring:
    """Makes the measures at the first row, and again whenever something else is measured from a row on.

    `own` are the user's measures.

    Attributes:
        targets: what is measured.
        measures: those that were made for the targets; none before the first row.
        setup: what the background thread knows of them.
        weights: the pass over the weights, whose reference belongs to the collector's state.
    """

    def __init__(
        self,
        targets: TrainingTargets,
        config: TelemetryConfig,
        *,
        gradient_pass: GradientPass,
        checks: CallChecks,
        own: Sequence[type[Measure]],
    ) -> None:
        self.targets = targets
        self.measures: Sequence[Measure] = ()
        self.setup: Setup | None = None
        self.weights = WeightPass(is_used=config.track_weight_delta)
        self._built_in = built_in_measures(config, self.weights)
        self._own = own
        self._holdout = HoldoutPlace(config, checks)
        self._gradient_pass = gradient_pass
        self._checks = checks
        self._is_strict = config.on_error == "raise"

    def begin(self, values: Iterable[str], labels: Iterable[str], resumed_from: int) -> Setup:
        """Make the measures of the first row."""
        targets = replace(self.targets.renewed(values=values, labels=labels), resumed_from=resumed_from)
        self._checks.check_optimizers()
        measures, setup = self._made(targets)
        self.targets, self.measures, self.setup = targets, measures, setup
        return setup

    def renew(self, values: Iterable[str], labels: Iterable[str]) -> None:
        """Measure what was added to optimizers, values and labels since the last row; note which groups are trained."""
        new = [name for name in values if name not in self.targets.value_names]
        new_labels = [name for name in labels if name not in self.targets.label_names]
        if self._checks.have_targets_changed() or new or new_labels:
            self.measure(self.targets.renewed(values=new, labels=new_labels))

    def measure(self, targets: TrainingTargets) -> None:
        """Measure other targets, with the same measures if they read the same numbers for the same tables and groups.

        Before the first row, no measure is made.
        """
        if self.setup is not None:
            measures, setup = self._made(targets)
            if not (targets.reads_the_same(self.targets) and setup.records_the_same(self.setup)):
                self.measures, self.setup = measures, setup
        self.targets = targets
        self._gradient_pass.measure(targets)
        self._checks.follow(targets)

    def set_holdout(
        self, batches: Iterable[Any], question: HoldoutQuestion, autocast: Autocast, *, is_collecting: bool
    ) -> None:
        """Evaluate held-out samples from the next row on."""
        self._holdout.set(batches, question, autocast, self.targets, is_collecting=is_collecting)

    def begin_holdout(self, batch_idx: int) -> None:
        """Add the table of the held-out samples, if it has not begun; what prevents it is reported."""
        try:
            measure = self._holdout.begin(batch_idx)
        except Exception as error:
            if self._is_strict or is_from_signal(error):
                raise
            self._checks.report_unmade(HoldoutPredictions, error)
            return
        if measure is not None:
            self._built_in.append(measure)
            self.measure(self.targets)

    def _made(self, targets: TrainingTargets) -> tuple[list[Measure], Setup]:
        measures = make_measures(self._built_in, self._own, targets, on_failure=self._checks.report_unmade)
        return measures, Setup(measures, targets.described_groups(), targets.rate_names(), self._holdout.ids)
