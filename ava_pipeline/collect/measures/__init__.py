"""The measures that come with the package, one file each."""

from ava_pipeline.collect.measures.gradient_norms import GradientNorms
from ava_pipeline.collect.measures.learning_rates import LearningRates
from ava_pipeline.collect.measures.measure import Measure
from ava_pipeline.collect.measures.steps import Steps

BUILT_IN_MEASURES: tuple[type[Measure], ...] = (GradientNorms, LearningRates, Steps)
