"""A report as a file."""

from collections.abc import Mapping
from pathlib import Path

from ava_pipeline.contract.files import written_aside
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.read.report.page import need_extra, render_page
from ava_pipeline.read.report.seen import see


def write_report(runs: Mapping[str, RunLayout], path: Path) -> None:
    """Write one page of one run or of several; the file appears whole.

    Args:
        runs: by the names that the page shows.
        path: of the page.

    Raises:
        ConfigError: the extra `report` is not installed.
        NotARunError: there is no run.
        OSError: the file cannot be written.
    """
    need_extra()
    page = render_page([see(name, layout) for name, layout in runs.items()])
    with written_aside(path) as file:
        file.write(page.encode("utf-8", "replace"))
