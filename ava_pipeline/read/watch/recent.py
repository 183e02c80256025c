"""The latest rows of a table, no more of them than a terminal shows."""

import numpy as np
import pyarrow as pa

from ava_pipeline.read.downsample import Floats
from ava_pipeline.read.watch.tail import News

NUM_KEPT = 1024


class Recent:
    """The last rows of one table."""

    def __init__(self) -> None:
        self._rows: pa.Table | None = None

    def add(self, news: News) -> None:
        """Take what is new, and let go of what is old."""
        parts = [news.rows] if news.is_anew or self._rows is None else [self._rows, news.rows]
        joined = pa.concat_tables(parts, promote_options="permissive")
        self._rows = joined.slice(max(0, joined.num_rows - NUM_KEPT)).combine_chunks()

    @property
    def rows(self) -> pa.Table | None:
        """None before the first one."""
        return self._rows if self._rows is not None and self._rows.num_rows else None

    def columns(self) -> dict[str, tuple[Floats, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]]:
        """The values of each number column but the keys, and where nothing was measured."""
        if self.rows is None:
            return {}
        return {
            field.name: (
                np.asarray(self.rows[field.name].cast(pa.float64()).to_numpy(), dtype=np.float64),
                np.asarray(self.rows[field.name].is_null().to_numpy(), dtype=np.bool_),
            )
            for field in self.rows.schema
            if pa.types.is_floating(field.type)
        }
