"""The run's batches, counted: from 1 on, across epochs and resumes."""

from ava_pipeline.collect.arguments import whole_number
from ava_pipeline.errors import MisuseError


class BatchCount:
    """Where the count stands, by itself or as the user says.

    Attributes:
        batch_idx: of the latest `step`, 1-based; 0 before the first.
        resumed_from: last batch of the checkpoint; 0 for a fresh start.
        num_accumulating: calls in this process that only accumulated gradients.
    """

    def __init__(self) -> None:
        self.batch_idx = self.resumed_from = 0
        self.num_accumulating = 0
        self._has_holes = False

    def resume(self, batch_idx: int) -> None:
        """Go on behind a checkpoint's batch."""
        self.batch_idx = self.resumed_from = batch_idx

    def follow(self, batch_idx: int) -> str | None:
        """Take the user's count where it rises, and go on counting where it does not.

        Returns:
            What is wrong with it, with the remedy; None where nothing is.

        Raises:
            MisuseError: it is no whole number, or below 1.
        """
        if isinstance(batch_idx, int) and batch_idx < 1:
            raise MisuseError(
                f"batch_idx is {batch_idx}; the run's batches count from 1 and on across epochs. "
                "With enumerate, give enumerate(loader, start=1) plus the batches of earlier epochs, or leave it out."
            )
        given, before = whole_number("batch_idx", batch_idx, least=1), self.batch_idx
        if given > before:
            self._has_holes |= given != before + 1
            self.batch_idx = given
            return None
        self.batch_idx += 1
        return (
            f"batch_idx {given} came after {before} and does not rise; the collector counts on by itself. "
            "Give the run's own count, which does not begin again with an epoch, or leave it out."
        )

    def next_multiple(self, every: int) -> int:
        """The first multiple of `every` behind this batch."""
        return (self.batch_idx // every + 1) * every

    @property
    def num_calls(self) -> int | None:
        """Calls in this process that did not only accumulate; None where the user's count has holes."""
        return None if self._has_holes else self.batch_idx - self.resumed_from - self.num_accumulating
