"""Where two runs part, as the page of two runs says it: the answers of `ava-pipeline compare`, and the layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from ava_pipeline.compare.answers import answers
from ava_pipeline.compare.compare import Comparison, compare_runs
from ava_pipeline.errors import RunError
from ava_pipeline.report.figure import TextTable, number_text
from ava_pipeline.report.run_data import RunData

_NUM_RUNS = 2
_MAX_LAYERS = 20


@dataclass(frozen=True, slots=True)
class Parting:
    """The comparison of two runs on their page.

    Attributes:
        names: those of the runs, which the sentences call A and B.
        sentences: the most important first.
        layers: the layers whose weights differ most, in the last snapshot that both runs have; None if there is none.
        batch_idx: the batch of that snapshot.
    """

    names: tuple[str, str]
    sentences: Sequence[str]
    layers: TextTable | None = None
    batch_idx: int | None = None


def parting_of(runs: Sequence[RunData]) -> Parting | None:
    """Compare the runs of a page of two; None for other pages. What cannot be compared is a sentence."""
    if len(runs) != _NUM_RUNS:
        return None
    names = (runs[0].name, runs[1].name)
    try:
        found = compare_runs(runs[0].layout.root, runs[1].layout.root)
    except RunError as error:
        return Parting(names, [f"The runs cannot be compared: {error}"])
    layers, batch_idx = _layers(found)
    return Parting(names, answers(found), layers, batch_idx)


def _layers(found: Comparison) -> tuple[TextTable | None, int | None]:
    snapshots = found.weights.snapshots if found.weights else ()
    if not snapshots:
        return None, None
    last = snapshots[-1]
    rows = [
        [layer.name, number_text(layer.relative), number_text(layer.l2_distance), number_text(layer.cosine)]
        for layer in last.layers[:_MAX_LAYERS]
    ]
    return TextTable(["layer", "relative distance", "L2 distance", "cosine"], rows), last.batch_idx
