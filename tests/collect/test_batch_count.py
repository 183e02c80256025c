"""The user's own count of batches."""

from pathlib import Path

import pytest

from ava_pipeline import TelemetryCollector
from ava_pipeline.errors import MisuseError
from tests.collect.models import backward, tiny
from tests.collect.recorded import batches, warnings_of


class TestOwnCount:
    """`batch_idx` given by a loop that keeps its own count."""

    def test_it_is_followed(self, tmp_path: Path) -> None:
        """Rows carry the user's count, also where it jumps."""
        model, optimizer = tiny()
        backward(model)
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=10) as telemetry:
            for batch_idx in (1, 10, 11, 25, 30):
                telemetry.step(batch_idx=batch_idx)
        assert batches(tmp_path) == [10, 25, 30]

    def test_zero_is_refused(self, tmp_path: Path) -> None:
        """An index from enumerate starts at 0; the message says what to give."""
        model, optimizer = tiny()
        with pytest.raises(MisuseError, match=r"enumerate\(loader, start=1\)"):
            TelemetryCollector(model, optimizer, tmp_path).step(batch_idx=0)

    def test_one_that_starts_again_warns_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A count that starts over each epoch would repeat rows, so the collector continues its own."""
        model, optimizer = tiny()
        with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2) as telemetry:
            for epoch in range(2):
                for batch_idx in (1, 2, 3, 4):
                    backward(model)
                    telemetry.step(epoch, batch_idx=batch_idx)
        assert batches(tmp_path) == [2, 4, 6, 8]
        assert len([one for one in warnings_of(caplog) if "does not rise" in one]) == 1
