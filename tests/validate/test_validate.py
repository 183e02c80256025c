"""Valid runs validate clean: runs that defer, lose rows, resume and grow, in every format."""

import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from ava_pipeline.contract.events import EXPLAIN_MISSING_ROWS, Event, EventName
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, StepCounters
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.errors import MisuseError, NotARunError
from ava_pipeline.validate.listing import MAX_LISTED
from ava_pipeline.validate.validate import RULES, validate_run
from tests.validate.building import GROUPS, NOW, Format, Row, RunBuilder, prediction_rows
from tests.validate.damaging import cut, edit_lines, edit_manifest, set_field

AVA = Path(__file__).parents[3] / "shared" / "ava"


def attempt(number: int = 1, *, every: int = 10, **facts: object) -> Attempt:
    """An attempt that counts no rows yet."""
    return Attempt.model_validate({"number": number, "started_utc": NOW, "collect_every_n": every} | facts)


def warning(name: EventName, first: int, last: int) -> Event:
    """A warning event about a range of batches."""
    return Event(
        event=name, severity="warning", message="rows are missing", batch_idx=first, batch_idx_end=last, epoch=0
    )


def rules_broken(root: Path) -> set[str]:
    """The ids of the rules that a run breaks."""
    return {finding.id for finding in validate_run(root, now=NOW)}


@pytest.mark.parametrize("formats", [("csv", "parquet"), ("csv",), ("parquet",)], ids=str)
def test_a_run_in_any_format_is_clean(formats: tuple[Format, ...], tmp_path: Path) -> None:
    """Tables may be CSV, Parquet or both."""
    assert validate_run(RunBuilder(root=tmp_path / "run", formats=formats).write()) == []


def test_string_ids_are_clean(tmp_path: Path) -> None:
    """Image ids may be strings."""
    names = [f"holiday-{number}" for number in range(30)]
    assert validate_run(RunBuilder(root=tmp_path / "run", image_ids=names).write()) == []


def test_nan_inf_and_null_are_clean(tmp_path: Path) -> None:
    """A norm may be measured and not finite, or null because it was not measured."""
    norms: dict[int, Row] = {
        20: {"overall": float("nan"), "mlp_head": float("nan"), "mlp_layer_0": float("nan")},
        30: {"overall": float("inf"), "backbone_layer4": float("inf")},
        40: {"mlp_head": float("inf"), "overall": float("inf")},
        50: {"backbone_layer4": None},
        60: {"mlp_head": 2.5, "mlp_layer_0": None, "mlp_layer_3": 2.5, "overall": 1e3},
        70: {"mlp_head": None, "mlp_layer_0": None, "mlp_layer_3": None},
        80: {"overall": 3e38, "backbone_layer4": 3e38},
        90: {"overall": 1e-44, "backbone_layer4": 0.0, "mlp_head": 1e-44, "mlp_layer_0": 7e-45, "mlp_layer_3": 7e-45},
    }
    assert validate_run(RunBuilder(root=tmp_path / "run", norms=norms).write()) == []


def test_counted_deferrals_are_clean_and_others_are_not(tmp_path: Path) -> None:
    """With accumulation over 4 batches, the row due at 10 is collected at 12, and the manifest counts it."""
    batches = (12, 20, 32, 40, 52, 60)
    clean = RunBuilder(root=tmp_path / "run", batches=batches, attempts=[attempt(deferred=3)]).write()
    assert validate_run(clean) == []
    edit_manifest(clean, lambda manifest: manifest["attempts"][0].update(deferred=2))
    assert rules_broken(clean) == {"rows.spacing"}


def test_a_row_between_two_due_ones_is_never_clean(tmp_path: Path) -> None:
    """A deferred row is late, never early."""
    run = RunBuilder(root=tmp_path / "run", batches=(10, 15, 20), attempts=[attempt(deferred=3)]).write()
    early = [found for found in validate_run(run) if str(found.file).endswith("norms.csv")]
    assert [(found.id, found.row, found.value) for found in early] == [("rows.spacing", 2, "15")]


def test_missing_rows_are_clean_if_a_gap_explains_them(tmp_path: Path) -> None:
    """Dropped steps have no rows; the gap event distinguishes them from lost rows."""
    batches = (10, 20, 50, 60)
    explained = RunBuilder(root=tmp_path / "explained", batches=batches, events=[warning("gap", 30, 40)]).write()
    assert validate_run(explained) == []
    assert rules_broken(RunBuilder(root=tmp_path / "silent", batches=batches).write()) == {"rows.spacing"}


def test_a_failed_row_of_one_table_is_clean(tmp_path: Path) -> None:
    """A row that broke a rule is missing in its own table only, and an event records it."""
    lost = {"gradient_norms": [30]}
    events = [warning("failed_row", 30, 30)]
    assert validate_run(RunBuilder(root=tmp_path / "explained", lost=lost, events=events).write()) == []
    silent = RunBuilder(root=tmp_path / "silent", lost=lost).write()
    assert rules_broken(silent) == {"rows.tables", "rows.spacing"}


def test_a_resumed_run_with_another_spacing_is_clean(tmp_path: Path) -> None:
    """Each attempt has its own collect_every_n; rows moved to superseded/ by a later attempt are not counted."""
    rows = {
        f"{table}.{end}": 5 for table in ("gradient_norms", "learning_rates", "steps") for end in ("csv", "parquet")
    }
    first = attempt(status="killed", rows=rows, counters=StepCounters(collected=5, written=5).model_dump())
    second = attempt(
        2,
        every=20,
        resumed_from=35,
        set_aside=dict.fromkeys(rows, 2),
        rows=dict.fromkeys(rows, 3),
        counters=StepCounters(collected=3, written=3).model_dump(),
    )
    run = RunBuilder(root=tmp_path / "run", batches=(10, 20, 30, 40, 60, 80), attempts=[first, second]).write()
    assert validate_run(run) == []
    edit_manifest(run, lambda manifest: manifest["attempts"][1].update(collect_every_n=10))
    assert rules_broken(run) == {"rows.spacing"}


def test_the_open_tail_of_a_running_run_is_clean(tmp_path: Path) -> None:
    """A growing run has journals, a torn line, late counters and tables of different lengths."""
    builder = RunBuilder(root=tmp_path / "run", status="running")
    builder.attempts[0].rows = {"gradient_norms.csv": 7, "gradient_norms.parquet": 7}
    run = builder.write()
    cut(run / "telemetry/learning_rates.csv", 30)
    cut(run / "telemetry/steps.journal", 40)
    (run / "telemetry/manifest.json.partial").touch()
    assert validate_run(run, now=NOW) == []


def test_damage_before_the_open_tail_is_found(tmp_path: Path) -> None:
    """A running run excuses only the end of its files."""
    run = RunBuilder(root=tmp_path / "run", status="running").write()
    set_field(run / "telemetry/learning_rates.csv", 2, "lr_group_0", "0.5")
    assert [(found.id, found.row) for found in validate_run(run, now=NOW)] == [("files.csv-parquet", 2)]


def test_a_killed_run_gets_an_info_and_nothing_else(tmp_path: Path) -> None:
    """A run with the status running and an old heartbeat was killed: an info, which does not fail."""
    run = RunBuilder(root=tmp_path / "run", status="running").write()
    findings = validate_run(run, now=NOW + timedelta(hours=3))
    assert [(found.id, found.severity) for found in findings] == [("run.killed", "info")]


def test_a_damaged_journal_is_found(tmp_path: Path) -> None:
    """A flipped byte loses the rows of its frame, and the finding reports it."""
    run = RunBuilder(root=tmp_path / "run", status="running", formats=("parquet",)).write()
    journal = run / "telemetry/gradient_norms.journal"
    data = bytearray(journal.read_bytes())
    second_frame = data.find(b"AVAjrnR1")
    data[second_frame + 100] ^= 1
    journal.write_bytes(data)
    found = [finding for finding in validate_run(run, now=NOW) if finding.id == "files.journal"]
    assert [finding.file for finding in found] == ["telemetry/gradient_norms.journal"]


def test_a_journal_beside_a_finished_run_is_a_warning(tmp_path: Path) -> None:
    """Rows that never reached Parquet are still read; `recover` moves them into it."""
    run = RunBuilder(root=tmp_path / "run", status="running").write()
    edit_manifest(
        run, lambda manifest: [manifest.update(status="failed"), manifest["attempts"][0].update(status="failed")]
    )
    findings = validate_run(run)
    assert {(found.id, found.severity) for found in findings} == {("files.leftover", "warning")}


def test_a_partition_other_than_the_head_is_checked(tmp_path: Path) -> None:
    """If children share all parameters of their parent, their squares add up to its square."""
    run = RunBuilder(root=tmp_path / "run").write()
    both = [*GROUPS["backbone_layer4"].parameters, *GROUPS["mlp_head"].parameters]
    edit_manifest(run, lambda manifest: manifest["groups"]["overall"].update(parameters=both))
    found = [finding for finding in validate_run(run) if str(finding.file).endswith(".csv")]
    assert {(finding.id, finding.column) for finding in found} == {("norms.partition", "overall")}


def test_at_most_twenty_findings_a_rule_and_file_are_listed(tmp_path: Path) -> None:
    """The others are counted, so that one broken column does not hide other findings."""
    run = RunBuilder(root=tmp_path / "run", batches=tuple(range(10, 1001, 10)), formats=("csv",)).write()
    spoil = lambda lines: [lines[0], *(f"{line.rpartition(',')[0]},-1" for line in lines[1:])]  # noqa: E731  # used once
    edit_lines(run / "telemetry/learning_rates.csv", spoil)
    findings = [found for found in validate_run(run) if found.id == "values.range"]
    assert len(findings) == MAX_LISTED + 1
    assert findings[-1].message.startswith("80 more")
    assert findings[-1].row is None


@pytest.mark.parametrize("ignore", [["files.csv-parquet"], ["files"]], ids=str)
def test_ignored_rules_may_be_broken(ignore: Sequence[str], tmp_path: Path) -> None:
    """A rule is ignored by its id or by its family."""
    run = RunBuilder(root=tmp_path / "run").write()
    set_field(run / "telemetry/steps.csv", 2, "loss", "0.5")
    assert validate_run(run)
    assert validate_run(run, ignore=ignore) == []


def test_ignoring_an_unknown_rule_names_the_nearest(tmp_path: Path) -> None:
    """Otherwise a mistyped id would silently ignore nothing."""
    run = RunBuilder(root=tmp_path / "run").write()
    with pytest.raises(MisuseError, match=r"norms\.head-sum"):
        validate_run(run, ignore=["norms.headsum"])


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    """An empty directory is a wrong path, not a run with findings."""
    with pytest.raises(NotARunError, match=r"manifest\.json"):
        validate_run(tmp_path)


def test_predictions_alone_are_a_run(tmp_path: Path) -> None:
    """A loop without telemetry still writes predictions, of sets with any name."""
    layout = RunLayout(tmp_path)
    for name in ("val", "val_ema", "test"):
        write_parquet(layout.epoch_predictions(0, name), prediction_rows([1, 2, 3], seed=1))
    assert validate_run(tmp_path) == []


def test_real_predictions_are_clean(tmp_path: Path) -> None:
    """25,548 real images keep the rules, including means computed from integer votes."""
    source = AVA / "real_val_predictions.parquet"
    if not source.exists():
        pytest.skip(f"{AVA} is not here: real AVA predictions are not redistributed")
    target = RunLayout(tmp_path).epoch_predictions(0)
    target.parent.mkdir()
    shutil.copy(source, target)
    assert validate_run(tmp_path) == []


def test_rule_ids_are_unique_families_and_names() -> None:
    """Scripts ignore rules by these ids."""
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))
    assert all(part.replace("-", "").isalpha() for rule_id in ids for part in rule_id.split(".", 1))
    assert all(rule.sentence.endswith(".") for rule in RULES)


def test_validating_changes_nothing(tmp_path: Path) -> None:
    """Validation only reads, so it does not disturb a run that another process writes."""
    run = RunBuilder(root=tmp_path / "run", status="running").write()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    validate_run(run)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


def test_each_event_that_explains_missing_rows_is_needed(tmp_path: Path) -> None:
    """Without any one of these events, rows that the collector reported as lost would be errors."""
    names: tuple[EventName, ...] = ("gap", "failed_row", "failed_write", "damaged_file")
    assert set(names) == set(EXPLAIN_MISSING_ROWS)
    for name in names:
        run = RunBuilder(root=tmp_path / name, batches=(10, 20, 50, 60), events=[warning(name, 30, 40)]).write()
        assert validate_run(run) == [], name
    other = RunBuilder(root=tmp_path / "other", batches=(10, 20, 50, 60), events=[warning("misuse", 30, 40)]).write()
    assert rules_broken(other) == {"rows.spacing"}
