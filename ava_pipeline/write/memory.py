"""The memory writer: rows kept in a list, for tests and benchmarks."""

import pyarrow as pa

from ava_pipeline.write.writer import Writer


class MemoryWriter(Writer):
    """Keeps a table's batches.

    Attributes:
        batches: every batch taken, in order.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self.batches: list[pa.RecordBatch] = []

    @property
    def file_name(self) -> str:
        """A name for the counters; there is no file."""
        return self._name

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep the batch."""
        self.batches.append(batch)

    def sync(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to finish."""

    def abandon(self) -> None:
        """Nothing to let go of."""
