"""A writer without a file, for tests and benchmarks."""

from pathlib import Path

import pyarrow as pa

from ava_pipeline.write.writers import Writer


class MemoryWriter(Writer):
    """Keeps a table's batches.

    Attributes:
        batches: every batch written, in order.
    """

    suffix = "memory"

    def __init__(self, name: str = "memory") -> None:
        super().__init__(Path(name), pa.schema([]))
        self.batches: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Keep the batch."""
        self.batches.append(batch)

    def sync(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to finish."""
