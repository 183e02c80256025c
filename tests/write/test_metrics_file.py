"""metrics.csv: rows are appended or added to, and the file is always the old one or the new one."""

import errno
import resource
from pathlib import Path

import pandas as pd
import pytest

from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.metrics import read_metrics
from ava_pipeline.write.metrics_file import MetricsFile
from tests.disk_calls import recorded
from tests.scripts import ROOT, run_script
from tests.write.test_crashes import KILLING

NAN, INF = float("nan"), float("inf")
FIRST = {Moment(0): {"loss": 0.5, "srcc": 0.1}}


def file_of(root: Path) -> MetricsFile:
    """The file, as a process that starts finds it."""
    return MetricsFile(RunLayout(root))


def text(root: Path) -> str:
    """The bytes on the disk."""
    with (root / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return file.read()


def test_rows_are_appended_with_the_bytes_that_read_back(tmp_path: Path) -> None:
    """Shortest floats, nan and inf as such, null as an empty field; pandas reads the same numbers."""
    file = file_of(tmp_path)
    values = [0.1 + 0.2, 1e-05, 5e-324, 1e300, -0.0, 3]
    for epoch, value in enumerate(values):
        file.write({Moment(epoch): {"loss": value, "srcc": NAN if epoch % 2 else -INF}})
    file.write({Moment(6): {"srcc": None}})
    assert text(tmp_path) == (
        "epoch,loss,srcc\n0,0.30000000000000004,-inf\n1,1e-05,nan\n2,5e-324,-inf\n3,1e+300,nan\n4,-0.0,-inf\n5,3.0,nan\n6,,\n"
    )
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert frame["epoch"].tolist() == list(range(7))
    assert frame["loss"].tolist()[:6] == values
    rows = read_metrics(RunLayout(tmp_path))
    assert rows["loss"].null_count == rows["srcc"].null_count == 1


def test_the_same_moment_adds_to_its_row(tmp_path: Path) -> None:
    """Later values replace older ones of the same name, but None, which is not measured, replaces none."""
    file = file_of(tmp_path)
    file.write({Moment(0): {"train_loss": 0.5}, Moment(1): {"train_loss": 0.25}})
    file.write({Moment(0): {"val_loss": 0.75, "train_loss": None}})
    file.write({Moment(1): {"val_loss": 0.625, "train_loss": 0.125}})
    assert text(tmp_path) == "epoch,train_loss,val_loss\n0,0.5,0.75\n1,0.125,0.625\n"


def test_a_new_name_is_a_column_that_older_rows_leave_empty(tmp_path: Path) -> None:
    """The columns are in the order in which their names first appeared, also if a name never had a value."""
    file = file_of(tmp_path)
    file.write({Moment(0): {"loss": 1.0}})
    file.write({Moment(1): {"srcc": 0.5, "none": None, "loss": 2.0}})
    file.write({Moment(2): {"loss": 3.0}})
    assert text(tmp_path) == "epoch,loss,srcc,none\n0,1.0,,\n1,2.0,0.5,\n2,3.0,,\n"


def test_batches_get_a_column_once_there_is_one_and_rows_are_in_the_order_of_time(tmp_path: Path) -> None:
    """The end of an epoch comes after its batches, and a late row takes its place."""
    file = file_of(tmp_path)
    file.write({Moment(1): {"loss": 1.0}})
    for moment, loss in ((Moment(2, 700), 3.0), (Moment(0, 20), 0.0), (Moment(1, 500), 0.5), (Moment(2), 4.0)):
        file.write({moment: {"loss": loss}})
    assert text(tmp_path) == "epoch,batch_idx,loss\n0,20,0.0\n1,500,0.5\n1,,1.0\n2,700,3.0\n2,,4.0\n"
    frame = pd.read_csv(tmp_path / "metrics.csv", dtype={"batch_idx": "Int64"})
    assert frame["batch_idx"].isna().tolist() == [False, False, True, False, True]
    assert file_of(tmp_path).supersede(lambda _: True) is None


def test_a_row_after_the_last_is_one_write_and_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the file is; with fsync it is synced."""
    file = MetricsFile(RunLayout(tmp_path), fsync=True)
    file.write(FIRST)
    monkeypatch.setattr(Path, "read_bytes", None)
    calls = recorded(monkeypatch)
    for epoch in range(1, 4):
        file.write({Moment(epoch): {"loss": 0.5}})
    assert calls == [("write", "metrics.csv"), ("sync", "metrics.csv")] * 3
    assert text(tmp_path).endswith("\n3,0.5,\n")


def test_a_process_that_starts_continues_the_file(tmp_path: Path) -> None:
    """Its first row is in the file with the older ones, which keep their bytes."""
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,0.50\n")
    file_of(tmp_path).write({Moment(1): {"loss": 0.25}})
    assert text(tmp_path) == "epoch,loss\n0,0.50\n1,0.25\n"


class TestFullDisk:
    """A disk that refuses a write leaves every row that was on it, and takes the next one."""

    def test_an_append_is_whole_or_nothing(self, tmp_path: Path) -> None:
        """The system limits the size of the file, for root too."""
        file = file_of(tmp_path)
        file.write(FIRST)
        before = text(tmp_path)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, limits[1]))
        try:
            with pytest.raises(OSError) as refused:  # noqa: PT011  # its number is checked
                file.write({Moment(1): {"loss": 0.25}})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert refused.value.errno == errno.EFBIG
        assert text(tmp_path) == before
        file.write({Moment(1): {"loss": 0.25}})
        assert text(tmp_path) == f"{before}1,0.25,\n"

    def test_a_new_column_leaves_the_old_file_if_it_is_refused(self, tmp_path: Path) -> None:
        """Nothing half-written is left."""
        file = file_of(tmp_path)
        file.write(FIRST)
        before = text(tmp_path)
        (tmp_path / "metrics.csv.partial").mkdir()
        with pytest.raises(OSError, match=r"metrics\.csv\.partial"):
            file.write({Moment(1): {"new": 0.25}})
        (tmp_path / "metrics.csv.partial").rmdir()
        assert text(tmp_path) == before
        file.write({Moment(1): {"new": 0.25}})
        assert text(tmp_path) == "epoch,loss,srcc,new\n0,0.5,0.1,\n1,,,0.25\n"


class TestOtherPrograms:
    """What another program did to the file costs no row of ours and none of theirs."""

    @pytest.mark.parametrize("end", ["1,0.", "1,0.5,0.1,7\n", "x,1,1\n", "-1,1,1\n", "1,good,1\n", "0,0.5,0.1\n"])
    def test_lines_that_are_not_rows_are_kept_in_superseded(self, end: str, tmp_path: Path) -> None:
        """Torn, too long, without an epoch, without a number, or a second row of an epoch."""
        file = file_of(tmp_path)
        file.write(FIRST)
        with (tmp_path / "metrics.csv").open("a") as other:
            other.write(end)
        file.write({Moment(1): {"loss": 0.25}})
        assert text(tmp_path) == "epoch,loss,srcc\n0,0.5,0.1\n1,0.25,\n"
        assert (tmp_path / "superseded/attempt-1/metrics.csv").read_text() == f"epoch,loss,srcc\n{end}"

    @pytest.mark.parametrize(
        "content", ["step,loss\n1,0.5\n", "epoch,loss", "", "epoch,a b\n0,1\n", "epoch,a,a\n0,1,1\n"]
    )
    def test_a_file_in_another_form_is_kept_whole(self, content: str, tmp_path: Path) -> None:
        """Such as one that the loop wrote by hand before."""
        (tmp_path / "metrics.csv").write_text(content)
        file_of(tmp_path).write(FIRST)
        assert text(tmp_path) == "epoch,loss,srcc\n0,0.5,0.1\n"
        assert (tmp_path / "superseded/attempt-1/metrics.csv").read_text() == content

    def test_a_file_that_was_replaced_or_removed_is_read_again(self, tmp_path: Path) -> None:
        """An append goes to the file that is there now."""
        file = file_of(tmp_path)
        file.write(FIRST)
        (tmp_path / "other").write_text("epoch,loss,srcc\n0,0.5,0.1\n1,7,7\n")
        (tmp_path / "other").replace(tmp_path / "metrics.csv")
        file.write({Moment(1): {"loss": 0.25}})
        assert text(tmp_path) == "epoch,loss,srcc\n0,0.5,0.1\n1,0.25,7\n"
        (tmp_path / "metrics.csv").unlink()
        file.write({Moment(2): {"loss": 0.125}})
        assert text(tmp_path) == "epoch,loss\n2,0.125\n"

    @pytest.mark.parametrize("name", ["metrics.csv", "superseded"])
    def test_no_link_out_of_the_run_is_followed(self, name: str, tmp_path: Path) -> None:
        """Neither to write nor to move rows."""
        outside, root = tmp_path / "outside", tmp_path / "run"
        outside.mkdir()
        root.mkdir()
        (outside / "metrics.csv").write_text("epoch,loss\n0,1.0\n")
        if name == "superseded":
            (root / "metrics.csv").write_text("epoch,loss\n0,1.0\n")
        (root / name).symlink_to(outside / "metrics.csv" if name == "metrics.csv" else outside)
        with pytest.raises(DamagedFileError, match="link out of the run directory"):
            file_of(root).supersede(lambda _: False)
        if name == "metrics.csv":
            with pytest.raises(DamagedFileError, match="link out of the run directory"):
                file_of(root).write(FIRST)
        assert [path.name for path in outside.iterdir()] == ["metrics.csv"]
        assert text(outside) == "epoch,loss\n0,1.0\n"


def test_rows_that_are_not_kept_are_in_superseded_with_the_same_bytes(tmp_path: Path) -> None:
    """Each time in a folder of its own; if no row is kept, the file itself moves there."""
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,0.50\n1,0.250\n2,0.125\n")
    file = file_of(tmp_path)
    assert file.supersede(lambda moment: moment.epoch < 1) == tmp_path / "superseded/attempt-1/metrics.csv"
    assert text(tmp_path) == "epoch,loss\n0,0.50\n"
    assert text(tmp_path / "superseded/attempt-1") == "epoch,loss\n1,0.250\n2,0.125\n"
    assert file.supersede(lambda moment: moment.epoch < 1) is None
    assert file.supersede(lambda _: False) == tmp_path / "superseded/attempt-2/metrics.csv"
    assert not (tmp_path / "metrics.csv").exists()
    assert text(tmp_path / "superseded/attempt-2") == "epoch,loss\n0,0.50\n"


REWRITING = (
    """
NAMES = ("contract/files.py", "write/metrics_file.py")
"""
    + KILLING
    + """
from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.write.metrics_file import MetricsFile

OLD = "epoch,loss\\n0,0.5\\n1,0.25\\n2,0.125\\n"
NEW = {
    "a new column": "epoch,loss,srcc\\n0,0.5,\\n1,0.25,\\n2,0.125,0.5\\n",
    "a row": OLD + "3,7.0\\n",
    "a resume": "epoch,loss\\n0,0.5\\n",
}


def change(file, kind):
    if kind == "a new column":
        file.write({Moment(2): {"srcc": 0.5}})
    elif kind == "a row":
        file.write({Moment(3): {"loss": 7.0}})
    else:
        file.supersede(lambda moment: moment.epoch == 0)


killed = 0
for kind, new in NEW.items():
    step, status = 0, 1
    while status:
        step += 1
        root = Path(sys.argv[1]) / kind.replace(" ", "-") / str(step)
        root.mkdir(parents=True)
        path = root / "metrics.csv"
        path.write_text(OLD)
        child = os.fork()
        if child == 0:
            file = MetricsFile(RunLayout(root))
            if kind == "a row":
                file.write({Moment(2): {"loss": 0.125}})
            kill_at(step)
            change(file, kind)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status in {0, signal.SIGKILL}, status
        killed += status == signal.SIGKILL
        assert path.read_text() in {OLD, new}, (kind, step, path.read_text())
        kept = "".join(place.read_text() for place in root.glob("superseded/*/metrics.csv"))
        for line in OLD.splitlines():
            assert line in path.read_text() + kept, (kind, step, line)
        change(MetricsFile(RunLayout(root)), kind)
        assert path.read_text() == new, (kind, step, path.read_text())
print(killed)
"""
)


def test_a_kill_at_any_line_of_rewriting_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """A process is killed at the first line of the files that write, at the second, and so on, until one completes.

    After each kill the file is whole, rows that are not in it are in superseded/, and the same call leads to the new
    file.
    """
    ended = run_script(REWRITING, tmp_path, ROOT / "ava_pipeline", deadline_s=200)
    assert int(ended.stdout) > 100
