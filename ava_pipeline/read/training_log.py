"""training.log of another training loop: how many batches an epoch has, and how the training ended."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Status
from ava_pipeline.read.run_files import read_text

LOG = "training.log"

_BATCH = re.compile(r"\bbatch\s+(\d+)\s*/\s*(\d+)", re.IGNORECASE)
_EPOCH = re.compile(r"\bepoch\s+(\d+)\s*/\s*(\d+)", re.IGNORECASE)
_EARLY_STOP = re.compile(r"\bearly[ -]stopp", re.IGNORECASE)
_FAILURE = re.compile(r"Traceback \(most recent call last\)|\bCRITICAL\b")
_INTERRUPT = re.compile(r"\bKeyboardInterrupt\b")


class Progress(NamedTuple):
    """The latest `Epoch 2/3` of a log."""

    epoch: int  # 1-based, as logs count
    num_epochs: int


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The lines of a log that say something about the run; all of them are of the latest training in it."""

    batches: frozenset[int] = frozenset()  # each total that a `Batch 5/12` names
    progress: Progress | None = None
    stopped_early: bool = False
    ended_by: Status | None = None  # failed or interrupted, if the log ends with a traceback

    @property
    def num_epochs(self) -> int | None:
        """How many epochs were planned."""
        return self.progress.num_epochs if self.progress else None


def read_log(layout: RunLayout) -> TrainingLog:
    """Read training.log; nothing is known without one. Raise DamagedFileError if it cannot be read.

    A log to which a second training was appended counts from that training's first epoch on.
    """
    lines = read_text(layout, layout.root / LOG).splitlines()
    matches = ((number, _EPOCH.search(line)) for number, line in enumerate(lines))
    epochs = [(number, int(match[1]), int(match[2])) for number, match in matches if match is not None]
    begins = [number for number, epoch, _ in epochs if epoch == 1]
    lines = lines[begins[-1] :] if begins else lines
    after = lines[max((index for index, line in enumerate(lines) if _EPOCH.search(line)), default=0) :]
    return TrainingLog(
        batches=frozenset(int(match[2]) for line in lines if (match := _BATCH.search(line))),
        progress=Progress(*epochs[-1][1:]) if epochs else None,
        stopped_early=any(map(_EARLY_STOP.search, after)),
        ended_by=_ended_by(after),
    )


def _ended_by(lines: list[str]) -> Status | None:
    if any(map(_INTERRUPT.search, lines)):
        return "interrupted"
    return "failed" if any(map(_FAILURE.search, lines)) else None
