"""Training moves and writes files inside its run directory only."""

from pathlib import Path

import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.train.run_dir import rewind


def test_a_resume_moves_no_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """Predictions of later epochs move to superseded/, but not those of another directory."""
    outside, layout = tmp_path / "outside", RunLayout(tmp_path / "run")
    outside.mkdir()
    (outside / "val_epoch_003.parquet").touch()
    layout.root.mkdir()
    layout.predictions.symlink_to(outside)
    with pytest.raises(DamagedFileError, match="predictions is a link out of the run directory"):
        rewind(layout, "config", [])
    assert [path.name for path in outside.iterdir()] == ["val_epoch_003.parquet"]
    assert [path.name for path in layout.root.iterdir()] == ["predictions"]
