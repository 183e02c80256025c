"""The columns that every measure's table begins with."""

from ava_pipeline.contract.tables import Column

KEY_COLUMNS = (
    Column(name="batch_idx", dtype="int64", description="1-based; counts every batch of the run.", not_below=1),
    Column(name="epoch", dtype="int64", description="0-based epoch.", not_below=0),
)
