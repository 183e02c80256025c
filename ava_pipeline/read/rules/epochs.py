"""Predictions across epochs: the same images with the same truth, no epoch left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.predictions import GT_COLUMNS
from ava_pipeline.read.arrays import differing, text
from ava_pipeline.read.inspected import Inspected
from ava_pipeline.read.prediction_files import PredictionFile, prediction_files
from ava_pipeline.read.prediction_rows import read_predictions
from ava_pipeline.read.rules import predictions
from ava_pipeline.read.rules.files import relative
from ava_pipeline.read.violations import Breach, Cell, Rule
from ava_pipeline.read.window import Window

IDS = Rule("predictions.ids", "Every epoch of a set predicts the same images.")
TRUTH = Rule("predictions.truth", "An image's true votes are the same every epoch.")
EPOCH = Rule("predictions.epoch", "A set's epochs follow each other without one left out.", "warning")

RULES = (IDS, TRUTH, EPOCH)


def check(run: Inspected) -> Iterator[Breach]:
    """Read every file of predictions once; each is compared with its set's first."""
    for _, files in groupby(prediction_files(run.layout), key=lambda file: file.name):
        yield from _of_set(run.layout, list(files))


def _of_set(layout: RunLayout, files: Sequence[PredictionFile]) -> Iterator[Breach]:
    yield from _left_out(layout, files)
    first: Window | None = None
    for file in files:
        told: list[Breach] = []
        part = read_predictions(layout, file, told.append)
        yield from told
        if part is not None:
            yield from predictions.check(part)
            yield from _compared(part, first) if first is not None else ()
            first = first or part


def _left_out(layout: RunLayout, files: Sequence[PredictionFile]) -> Iterator[Breach]:
    present = {file.epoch for file in files}
    for epoch in sorted(set(range(max(present))) - present):
        path = layout.epoch_predictions(epoch, files[0].name)
        yield EPOCH.found(relative(layout, path), "the file is not there, though a later epoch's is.")


def _compared(part: Window, first: Window) -> Iterator[Breach]:
    ids, first_ids = part.rows.column("image_id"), first.rows.column("image_id")
    if ids.type != first_ids.type:
        yield IDS.found(part.file, Cell(f"ids are {ids.type}, in {first.name} {first_ids.type}.", "image_id"))
        return
    yield from _strange(part, first)
    lost = np.flatnonzero(np.asarray(pc.is_in(first_ids, ids)) == 0)
    if len(lost):
        one = text(first.rows, "image_id", int(lost[0]))
        message = f"{len(lost)} images of {first.name} are missing, such as {one}."
        yield IDS.found(part.file, Cell(message, "image_id", one))
    yield from _other_truth(part, first)


def _strange(part: Window, first: Window) -> Iterator[Breach]:
    known = np.asarray(pc.is_in(part.rows.column("image_id"), first.rows.column("image_id")))
    if not known.all():
        yield IDS.at(part.file, np.flatnonzero(~known), _Image(f"image {{}} is not in {first.name}.", part))


@dataclass(frozen=True, slots=True)
class _Image:
    """A sentence about a row's image."""

    message: str
    part: Window
    column: str = "image_id"

    def __call__(self, row: int) -> Cell:
        value = text(self.part.rows, self.column, row)
        return Cell(self.message.format(text(self.part.rows, "image_id", row)), self.column, value)


def _other_truth(part: Window, first: Window) -> Iterator[Breach]:
    here, there = _shared(part, first)
    rows, others = part.rows.take(here), first.rows.take(there)
    for name in ("gt_mean", *GT_COLUMNS):
        other = np.flatnonzero(differing(rows.column(name), others.column(name)))
        if len(other):
            message = f"image {{}} has another true value in {first.name}."
            yield TRUTH.at(part.file, here[other], _Image(message, part, name))


def _shared(part: Window, first: Window) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the images that both files hold."""
    found = pc.index_in(part.rows.column("image_id"), first.rows.column("image_id").combine_chunks())
    positions = np.asarray(found.fill_null(-1).to_numpy(), dtype=np.intp)
    here = np.flatnonzero(positions >= 0)
    return here, positions[here]
