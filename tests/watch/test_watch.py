"""A running job in the terminal."""

import fcntl
import os
import platform
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from select import select

import numpy as np
import pyte
import pytest
from rich.console import Console

from ava_pipeline.contract.arrays import integers
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest, status_now, utc_now, write_manifest
from ava_pipeline.read.run import open_run
from ava_pipeline.watch.live_run import MAX_ROWS, LiveRun
from ava_pipeline.watch.view import BARS, sparkline, view
from tests.report.reported import crashed, every_batch, faulty
from tests.validate.building import NOW, RunBuilder
from tests.write.feeding import PlainMeasure, Room, leave_as_killed

_COLUMNS, _LINES = 100, 40
_DEADLINE_S = 150


class Terminal:
    """A pseudo-terminal with a process, and the text on its screen."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int, columns: int, lines: int) -> None:
        self.process = process
        self.descriptor = descriptor
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self._screen.display)

    def read_until(self, is_so: Callable[[str], bool]) -> None:
        """Read the output of the process, piece by piece, until the text on the screen meets a condition."""
        while not is_so(self.text):
            assert self._read(), self.text

    def read_to_end(self) -> int:
        """Read until the process ends, since a full terminal would block it, and return its exit status."""
        while self._read():
            pass
        return self.process.wait(_DEADLINE_S)

    def _read(self) -> bool:
        ready, _, _ = select([self.descriptor], [], [], _DEADLINE_S)
        assert ready, f"nothing new on the screen:\n{self.text}"
        try:
            self._stream.feed(os.read(self.descriptor, 65536))
        except OSError:  # the process ended and its terminal is gone
            return False
        return True


@contextmanager
def watching(root: Path, columns: int = _COLUMNS, lines: int = _LINES) -> Iterator[Terminal]:
    """`ava-pipeline watch` in a pseudo-terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [sys.executable, "-m", "ava_pipeline", "watch", str(root), "--interval", "0.1"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            yield Terminal(process, ours, columns, lines)
        finally:
            process.kill()
            os.close(ours)


def name_ended_process(root: Path) -> None:
    """Write a process of this host that has ended into the manifest."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    path = RunLayout(root).manifest
    manifest = read_manifest(path)
    manifest.attempt.pid, manifest.attempt.host = ended.pid, platform.node()
    write_manifest(path, manifest)


def test_a_run_is_followed_through_a_crash_and_a_resume_to_its_end(tmp_path: Path) -> None:
    """New rows, the crash and the resume appear; the end of the run ends it with status 0 and a last view."""
    root = tmp_path / "run"
    first = Room(root)
    first.write(range(1, 31))
    with watching(root) as terminal:
        terminal.read_until(lambda text: all(word in text for word in ("running", "batch 30", "overall")))
        first.write(range(31, 41))
        terminal.read_until(lambda text: "batch 40" in text)
        leave_as_killed(first)
        name_ended_process(root)
        terminal.read_until(lambda text: "killed" in text and "Waiting until it is resumed" in text)
        second = Room(root, resumed_from=20)
        second.write(range(21, 26))
        terminal.read_until(lambda text: all(word in text for word in ("running", "attempt 2", "batch 25")))
        second.close()
        assert terminal.read_to_end() == 0
        assert "The run is complete." in terminal.text
        assert "batch 25" in terminal.text


def test_ctrl_c_leaves_the_run_alone(tmp_path: Path) -> None:
    """Status 0, the last view stays, no traceback."""
    telemetry = Room(tmp_path / "run")
    telemetry.write(range(1, 6))
    with watching(tmp_path / "run") as terminal:
        terminal.read_until(lambda text: "batch 5" in text)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.read_to_end() == 0
        assert "latest events" in terminal.text
        assert "Traceback" not in terminal.text
    telemetry.close()


def eventful(root: Path) -> Path:
    """A running run with findings whose sentences are longer than any line."""
    events = [
        Event(
            event="spike",
            severity="warning",
            message="overall spiked to 1e+06, 3.35e+05 times the median. Look at the samples of this batch: labels, "
            "decoding, normalisation. Samples of batch 80: " + ", ".join(f"image-{number}.jpg" for number in range(20)),
            batch_idx=batch,
            batch_idx_end=batch,
            epoch=0,
            column="overall",
        )
        for batch in (10, 50, 80)
    ]
    builder = RunBuilder(root=root, batches=range(1, 121), attempts=every_batch(), status="running", events=events)
    builder.heartbeat_utc = utc_now()
    builder.attempts[0].pid, builder.attempts[0].host = os.getpid(), platform.node()
    return builder.write()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (50, 24), (50, 40)])
def test_a_small_terminal_shows_the_events_and_the_newest_rows(columns: int, lines: int, tmp_path: Path) -> None:
    """One line for each event, without advice; the newest rows, and no number that is cut off."""
    with watching(eventful(tmp_path / "run"), columns, lines) as terminal:
        terminal.read_until(lambda text: "loss" in text)
        found = [line.rstrip() for line in terminal.text.splitlines()]
        first = found.index("latest events") + 1
        assert [line[:15] for line in found[first : first + 3]] == [f"batch {batch}  spike" for batch in (80, 50, 10)]
        assert not [line for line in found if "Look at" in line]
        rates = next(line for line in found if line.startswith("lr_group_0"))
        bars = "".join(letter for letter in rates if letter in BARS)
        assert bars == sparkline(1e-4 / np.arange(1, 121), np.zeros(120, dtype=bool), len(bars))
        assert len(bars) >= 16
        assert rates.endswith("8.33e-07 … 0.0001" if columns == 80 else bars)


def test_tables_share_the_lines_of_the_terminal(tmp_path: Path) -> None:
    """The longest table shows fewer columns and the number of hidden ones; without a terminal all are shown."""
    live_run = LiveRun(open_run(eventful(tmp_path / "run")))
    live_run.update(utc_now())
    for height in (17, 20, 40):
        lines = shown(live_run, height).splitlines()
        assert len(lines) <= height
        assert all(any(line.startswith(name) for line in lines) for name in ("overall", "lr_group_0", "loss"))
    assert re.search(r"^gradient norm +last +[34] more", shown(live_run, 18), re.MULTILINE)
    assert "mlp_layer_3" in shown(live_run)


def shown(live_run: LiveRun, height: int | None = None) -> str:
    """The view as text."""
    console = Console(width=_COLUMNS, file=open(os.devnull, "w"), record=True)  # noqa: PTH123, SIM115  # closed below
    console.print(view(live_run, utc_now(), _COLUMNS, height))
    console.file.close()
    return console.export_text()


def batches(live_run: LiveRun, table: str = "norms") -> list[int]:
    """The batches of the latest rows."""
    rows = live_run.tables[table].rows
    return [] if rows is None else integers(rows, "batch_idx").tolist()


def test_only_new_rows_are_read(tmp_path: Path) -> None:
    """The end of a long table, and then whole lines as they are appended."""
    telemetry = Room(tmp_path / "run")
    telemetry.files.open(telemetry.channel.stats())
    path = RunLayout(tmp_path / "run").csv("norms")
    with path.open("a") as file:
        file.writelines(f"{batch},0,{batch}.0,0.5\n" for batch in range(1, 100_001))
    live_run = LiveRun(open_run(tmp_path / "run"))
    live_run.update(utc_now())
    assert batches(live_run) == list(range(100_001 - MAX_ROWS, 100_001))
    with path.open("a") as file:
        file.write("100001,0,1.0,0.5\n100002,0,1.")
    tail = live_run._tails["norms"]
    assert tail.read_new().rows["batch_idx"].to_pylist() == [100_001]
    with path.open("a") as file:
        file.write("25,0.5\n")
    assert tail.read_new().rows.to_pylist()[0]["overall"] == 1.25
    assert tail.read_new().rows.num_rows == 0
    telemetry.close()


def test_a_file_that_was_cut_and_extended_is_read_again(tmp_path: Path) -> None:
    """Even if it is as long as before."""
    telemetry = Room(tmp_path / "run")
    telemetry.write(range(1, 9))
    live_run = LiveRun(open_run(tmp_path / "run"))
    live_run.update(utc_now())
    path = RunLayout(tmp_path / "run").csv("norms")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], *(line.replace(",0.5", ",0.7") for line in lines[5:])]))
    live_run.update(utc_now())
    rows = live_run.tables["norms"].rows
    assert rows is not None
    assert rows["head"].to_pylist() == pytest.approx([0.5] * 4 + [0.7] * 4)
    telemetry.close()


def test_a_resumed_run_may_measure_other_columns(tmp_path: Path) -> None:
    """The columns of the new attempt are shown."""
    first = Room(tmp_path / "run")
    first.write(range(1, 6))
    live_run = LiveRun(open_run(tmp_path / "run"))
    live_run.update(utc_now())
    leave_as_killed(first)
    second = Room(tmp_path / "run", resumed_from=5, measure=PlainMeasure(columns=("overall", "tail")))
    second.write(range(6, 9))
    live_run.update(utc_now())
    assert not live_run.problem
    assert "tail" in shown(live_run)
    assert batches(live_run) == list(range(1, 9))
    second.close()


def test_a_file_with_half_a_header_has_no_rows(tmp_path: Path) -> None:
    """Its rows appear once the header is complete."""
    root = RunBuilder(root=tmp_path / "run", batches=range(1, 6), formats=("csv",)).write()
    path = RunLayout(root).csv("gradient_norms")
    whole = path.read_bytes()
    path.write_bytes(whole[:9])
    live_run = LiveRun(open_run(root))
    live_run.update(utc_now())
    assert batches(live_run, "gradient_norms") == []
    path.write_bytes(whole)
    live_run.update(utc_now())
    assert batches(live_run, "gradient_norms") == [1, 2, 3, 4, 5]


def test_a_run_without_csv_is_followed_in_its_journal(tmp_path: Path) -> None:
    """Its Parquet file and journal are read again when they change."""
    RunBuilder(root=tmp_path / "run", batches=range(1, 61), status="running", formats=("parquet",)).write()
    live_run = LiveRun(open_run(tmp_path / "run"))
    live_run.update(utc_now())
    live_run.update(utc_now())
    assert batches(live_run, "gradient_norms") == list(range(1, 61))


def test_a_crashed_run_is_called_killed(tmp_path: Path) -> None:
    """At once if its process was on this host, else after a long silence."""
    root = crashed(tmp_path / "run")
    manifest = read_manifest(RunLayout(root).manifest)
    assert status_now(manifest, NOW) == "running"
    assert status_now(manifest, NOW + timedelta(minutes=3)) == "killed"
    name_ended_process(root)
    assert status_now(read_manifest(RunLayout(root).manifest), NOW) == "killed"


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    """Names and messages may come from others; a terminal does not interpret them."""
    root = RunBuilder(root=tmp_path / "\x1b[2Jrun\x07", batches=range(1, 6), attempts=every_batch()).write()
    live_run = LiveRun(open_run(root))
    live_run.update(utc_now())
    assert "\\x1b[2Jrun\\x07" in shown(live_run)
    assert "\x1b" not in shown(live_run)


def test_a_problem_is_shown_and_the_file_read_again(tmp_path: Path) -> None:
    """As happens while a resumed run moves its files."""
    root = faulty(tmp_path / "run")
    live_run = LiveRun(open_run(root))
    path = RunLayout(root).manifest
    path.rename(tmp_path / "manifest")
    live_run.update(utc_now())
    assert "does not exist" in shown(live_run).replace("\n", " ")
    assert not live_run.is_finished
    (tmp_path / "manifest").rename(path)
    live_run.update(utc_now())
    assert "not exist" not in shown(live_run)
    assert live_run.is_finished


def test_a_sparkline_distinguishes_numbers_zeros_and_missing_values() -> None:
    """Bars are logarithmic, the greatest of each range; ! is not finite, _ is 0, a space was not measured."""
    no_nulls = np.zeros(8, dtype=bool)
    values = np.array([1, 10, 100, 1000, np.nan, np.inf, 0, 0])
    assert sparkline(values, no_nulls, 8) == "▁▃▆█!!__"
    assert sparkline(values, no_nulls, 4) == "▃█!_"
    assert sparkline(values, ~no_nulls, 3) == "   "
    assert sparkline(np.array([2.0]), no_nulls[:1], 5) == "▅"
    assert sparkline(np.array([]), no_nulls[:0], 5) == ""


def test_metrics_are_shown_as_they_are_logged(tmp_path: Path) -> None:
    """With values that were added to older rows; a file in another form, or none, is not a problem."""
    root = RunBuilder(root=tmp_path / "run").write()
    live_run = LiveRun(open_run(root))
    shown = []
    for text in (
        None,
        "epoch,top-5\n0,0.5\n",
        "epoch,batch_idx,top-5,val/loss\n0,,0.5,0.25\n1,50,,0.125\n",
        "step,a\n1,2\n",
    ):
        (root / "metrics.csv").unlink(missing_ok=True)
        if text is not None:
            (root / "metrics.csv").write_text(text)
        live_run.update(NOW)
        assert live_run.problem == ""
        console = Console(width=100, file=StringIO(), record=True)
        console.print(view(live_run, NOW, 100))
        shown.append(console.export_text())
    assert ["metric" in text for text in shown] == [False, True, True, False]
    assert ["top-5" in text for text in shown] == [False, True, True, False]
    assert ["0.125" in text for text in shown] == [False, False, True, False]
    assert all("epoch 2 · batch 120" in text for text in shown)
