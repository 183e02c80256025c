"""What a writer is: one file format for one table."""

from abc import ABC, abstractmethod

import pyarrow as pa


class Writer(ABC):
    """Takes a table's Arrow batches and brings them to one file.

    A writer is used by one thread. `write` takes a batch in full or raises and takes none of it, so that the next
    batch can be tried again after trouble with the disk.
    """

    @property
    @abstractmethod
    def file_name(self) -> str:
        """The file that the rows end up in, for counters and messages."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Take one batch: after this it survives the process being killed.

        Raises:
            OSError: the batch was not taken, none of it.
        """

    @abstractmethod
    def sync(self) -> None:
        """Wait until every batch taken survives a power loss.

        Raises:
            OSError: the disk refused.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish the file. Nothing is written afterwards.

        Raises:
            OSError: the file could not be finished; what was taken can still be recovered.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Let go of the file as it is: what was taken stays where it lies. Never raises, never names the file."""
