"""docs/extending.md holds: a measure and a writer in files of the user's own, given to the collector."""

import importlib
import inspect
import json
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ava_pipeline import (
    KEY_COLUMNS,
    Column,
    Measure,
    MisuseError,
    Reading,
    Table,
    TelemetryCollector,
    Writer,
    open_run,
    recover_run,
    validate_run,
    write_report,
)
from ava_pipeline.contract.tables import RunTable
from tests.collect.models import TinyNet, tiny, train
from tests.scripts import run_script

DOC = Path(__file__).parents[1] / "docs" / "extending.md"


def code(file: str) -> str:
    """A file of the page."""
    found = re.search(rf"```python\n# {file}\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert found
    return found[1]


def from_page(file: str, name: str) -> Any:
    """A class of the page."""
    names: dict[str, Any] = {}
    exec(code(file), names)  # noqa: S102  # the page's own code
    return names[name]


ParameterNorms: type[Measure] = from_page("parameter_norms.py", "ParameterNorms")
JsonLines: type[Writer] = from_page("json_lines.py", "JsonLines")
Alerts: Any = from_page("alerts.py", "Alerts")
TABLES = ["gradient_norms", "learning_rates", "steps", "parameter_norms"]


def reference(model: TinyNet) -> float:
    """The head's weights as one vector, in float64."""
    return float(torch.cat([one.detach().double().reshape(-1) for one in model.mlp_head.parameters()]).norm())


def batches(path: Path) -> list[int]:
    """The batches in a file of JSON Lines."""
    return [json.loads(line)["batch_idx"] for line in path.read_text().splitlines()]


def test_the_example_of_a_writer_is_that_of_the_page() -> None:
    """The docstring of `Writer` shows the class that the other tests take from the page."""
    example = inspect.cleandoc(Writer.__doc__ or "").partition("\nExample:\n")[2]
    assert "class " + code("json_lines.py").partition("class ")[2].rstrip() == textwrap.dedent(example)


def test_a_measure_in_one_file(tmp_path: Path) -> None:
    """Both formats, the schema, the manifest and validation follow from the declaration."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    before = reference(model)
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, measures=[ParameterNorms]) as telemetry:
        train(telemetry, model, optimizer, 3)
    csv = pd.read_csv(run / "telemetry" / "parameter_norms.csv")
    parquet = pq.read_table(run / "telemetry" / "parameter_norms.parquet")
    declared = open_run(run).manifest.tables["parameter_norms"].declaration
    assert csv["mlp_head"][0] == pytest.approx(before, rel=1e-5)
    assert np.array_equal(csv["overall"].to_numpy(np.float32), parquet["overall"].to_numpy())
    assert declared.table.json_schema()["title"] == "parameter_norms"
    assert parquet.schema.equals(RunTable.model_validate(declared).arrow_schema)
    assert open_run(run).table("parameter_norms")["batch_idx"].tolist() == [1, 2, 3]
    assert validate_run(run) == []


def test_a_measure_reports_events_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what every measure reports."""
    for file in ("parameter_norms.py", "bounded_parameter_norms.py"):
        (tmp_path / file).write_text(code(file))
    monkeypatch.syspath_prepend(str(tmp_path))
    measure = importlib.import_module("bounded_parameter_norms").BoundedParameterNorms
    monkeypatch.setattr(measure, "limit", 0.0)
    run, (model, optimizer) = tmp_path / "run", tiny()
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, measures=[measure]) as telemetry:
        train(telemetry, model, optimizer, 2)
    events = open_run(run).events()
    assert events["event"].tolist() == ["exploding", "exploding"]
    assert events["value"].tolist() == pytest.approx(open_run(run).table("parameter_norms")["overall"].tolist())


class CountsOfZeros(Measure):
    """A column of integers."""

    table = Table(
        name="zeros",
        description="Weights that are exactly 0.",
        columns=(*KEY_COLUMNS, Column(name="num_zeros", dtype="int64", description="How many.", not_below=0)),
    )

    def read(self, snapshot: Any) -> Reading:  # noqa: ARG002  # the weights are in the targets
        """Count on the device."""
        return Reading([sum((weight == 0).sum() for weight in self.targets.parameters)])

    def columns(self, numbers: Any, layout: object) -> Any:  # noqa: ARG002  # one layout
        """As integers."""
        return {"num_zeros": [int(count) for (count,) in numbers]}


def test_a_column_of_integers_is_drawn_too(tmp_path: Path) -> None:
    """In the report's plots, beside the file, the manifest and validation."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, measures=[CountsOfZeros]) as telemetry:
        train(telemetry, model, optimizer, 3)
    assert validate_run(run) == []
    write_report(run, tmp_path / "page.html")
    assert "num_zeros" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_its_damage_is_found(tmp_path: Path) -> None:
    """The rule of the sum of squares holds for the new table as for the old ones."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    options: dict[str, Any] = {"collect_every_n": 1, "formats": ["csv"], "measures": [ParameterNorms]}
    with TelemetryCollector(model, optimizer, run, **options) as telemetry:
        train(telemetry, model, optimizer, 3)
    path = run / "telemetry" / "parameter_norms.csv"
    frame = pd.read_csv(path)
    frame["mlp_layer_0"] = frame["mlp_layer_0"].to_numpy() * np.array([1.0, 1.5, 1.0])
    frame.to_csv(path, index=False)
    assert [str(one).partition("[")[2] for one in validate_run(run)] == ["norms.head-sum]"]


def test_embeddings_are_measured_in_training_only(tmp_path: Path) -> None:
    """The recipe against NumPy; the batches of a holdout and of a validation are not the training's."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    measure = from_page("embedding_norms.py", "embedding_norms")(model[0])
    options = {"collect_every_n": 1, "track_holdout_logits": True}
    held_out = [{"image": torch.ones(3, 6), "label": torch.zeros(3, dtype=torch.int64), "id": [1, 2, 3]}]
    expected = []
    with TelemetryCollector(model, optimizer, tmp_path, options, measures=[measure]) as telemetry:
        telemetry.set_holdout(held_out, forward=lambda model, batch: model(batch["image"]), labels="label", ids="id")
        for seed in range(3):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
            model(x).square().mean().backward()
            embeddings = model[0](x).detach().double().numpy()
            expected.append((np.linalg.norm(embeddings, axis=1).mean(), embeddings.std(axis=0).mean()))
            model.eval()
            model(torch.full((2, 6), 9.0))
            model.train()
            telemetry.step()
            optimizer.step()
    found = open_run(tmp_path).table("embedding_norms")[["mean_norm", "spread"]].to_numpy(dtype=float)
    assert found == pytest.approx(np.array(expected), rel=1e-5)
    assert open_run(tmp_path).arrow("holdout_predictions").num_rows == 9
    assert validate_run(tmp_path) == []


def test_dead_units_are_counted_over_all_batches_since_the_row_before(tmp_path: Path) -> None:
    """A unit is dead if no batch between two rows wakes it, whichever rows are collected."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Conv1d(1, 2, 1), torch.nn.ReLU())
    with torch.no_grad():
        first, second = model[0], model[2]
        assert isinstance(first, torch.nn.Linear)
        assert isinstance(second, torch.nn.Conv1d)
        first.weight.copy_(torch.eye(4))
        torch.nn.init.zeros_(next(reversed([*first.parameters()])))
        second.weight.copy_(torch.tensor([[[1.0]], [[-1.0]]]))
        torch.nn.init.zeros_(next(reversed([*second.parameters()])))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    measure = from_page("dead_relus.py", "dead_relus")(model)
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=2, measures=[measure]) as telemetry:
        for awake in ((0,), (1,), (0,), (0,)):
            x = -torch.ones(3, 1, 4)
            x[0, 0, list(awake)] = 1.0
            hidden = model[1](model[0](x).reshape(3, 4)).reshape(3, 1, 4)
            model[3](model[2](hidden)).sum().backward()
            telemetry.step()
    rows = open_run(tmp_path).arrow("dead_relus").to_pylist()
    shares = [(row["batch_idx"], row["layer_name"], row["dead_share"]) for row in rows]
    assert shares == [(2, "1", 0.5), (2, "3", 0.5), (4, "1", 0.75), (4, "3", 0.5)]
    assert validate_run(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from ava_pipeline import TelemetryCollector
from tests.collect.models import tiny, train
from tests.test_extending import JsonLines, ParameterNorms

model, optimizer = tiny()
telemetry = TelemetryCollector(
    model, optimizer, Path(sys.argv[1]), collect_every_n=1, measures=[ParameterNorms], writers=[JsonLines]
)
train(telemetry, model, optimizer, 4)
assert telemetry.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_with_both_is_killed_recovered_and_resumed(tmp_path: Path) -> None:
    """The tables continue; a file of the user's own format starts over, and its older rows are kept."""
    run = tmp_path / "run"
    run_script(KILLED, run, code=-9)
    lines = {name: (run / "telemetry" / f"{name}.jsonl").read_bytes() for name in TABLES}
    assert batches(run / "telemetry" / "parameter_norms.jsonl") == [1, 2, 3, 4]
    assert recover_run(run).is_complete
    assert {name: (run / "telemetry" / f"{name}.jsonl").read_bytes() for name in TABLES} == lines
    assert validate_run(run) == []
    model, optimizer = tiny()
    options: dict[str, Any] = {"collect_every_n": 1, "measures": [ParameterNorms], "writers": [JsonLines]}
    with TelemetryCollector(model, optimizer, run, **options) as telemetry:
        telemetry.load_state_dict({"batch_idx": 3, "epoch": 0})
        train(telemetry, model, optimizer, 2)
    assert open_run(run).table("parameter_norms")["batch_idx"].tolist() == [1, 2, 3, 4, 5]
    assert batches(run / "telemetry" / "parameter_norms.jsonl") == [4, 5]
    older = run / "telemetry" / "superseded" / "attempt-2"
    assert {name: (older / f"{name}.jsonl").read_bytes() for name in TABLES} == lines
    assert "fewer" not in (run / "telemetry" / "events.csv").read_text()
    assert validate_run(run) == []
    shutil.rmtree(run)


class Failing(ParameterNorms):  # type: ignore[misc, valid-type]  # a class of the page
    """Raises where a step is read, and where its columns are made."""

    table = ParameterNorms.table.model_copy(update={"name": "failing"})

    def read(self, snapshot: Any) -> Reading:
        """Raise at every second step."""
        self.num_read = getattr(self, "num_read", 0) + 1
        if self.num_read % 2:
            raise ZeroDivisionError("a measure with a bug")
        reading: Reading = super().read(snapshot)
        return reading

    def columns(self, numbers: Any, layout: object) -> Any:  # noqa: ARG002  # none is used
        """Raise always."""
        raise KeyError("another bug")


class NoReading(ParameterNorms):  # type: ignore[misc, valid-type]  # as above
    """Cannot be made."""

    table = ParameterNorms.table.model_copy(update={"name": "never"})

    def __init__(self, targets: object) -> None:  # noqa: ARG002  # as above
        raise OSError("no such library")


def test_a_measure_that_fails_costs_its_own_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other tables have every row, and events say what went wrong."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    measures: list[type[Measure]] = [Failing, NoReading, ParameterNorms]
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, measures=measures) as telemetry:
        train(telemetry, model, optimizer, 4)
    assert telemetry.stats().failed == 4
    tables = open_run(run)
    assert tables.table("parameter_norms")["batch_idx"].tolist() == [1, 2, 3, 4]
    assert tables.gradient_norms()["batch_idx"].tolist() == [1, 2, 3, 4]
    assert tables.table("failing")["batch_idx"].tolist() == []
    messages = [str(message) for message in tables.events()["message"]]
    assert [("a measure with a bug" in one, "another bug" in one) for one in messages[1:]] == [
        (True, False), (False, True), (True, False), (False, True),
    ]  # fmt: skip
    unmade = "the measure NoReading could not be made, so its table gets no rows: OSError: no such library"
    assert messages[0].startswith(unmade)
    assert tables.events()["column"][0] == "never"
    assert any(unmade in message for message in caplog.messages)
    assert validate_run(run) == []


def test_a_measure_that_raises_in_the_training_thread_ends_a_strict_run(tmp_path: Path) -> None:
    """With on_error="raise", out of the `step` that it fails on."""
    model, optimizer = tiny()
    telemetry = TelemetryCollector(
        model, optimizer, tmp_path / "run", collect_every_n=1, measures=[Failing], on_error="raise"
    )
    with pytest.raises(ZeroDivisionError, match="a measure with a bug"):
        train(telemetry, model, optimizer, 1)
    telemetry.close()


class FullDisk(JsonLines):  # type: ignore[misc, valid-type]  # a class of the page
    """Refuses every batch of one table, and cannot be opened for another one."""

    suffix = "full"

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        if path.stem == "steps":
            raise PermissionError("not allowed")
        super().__init__(path, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Refuse the learning rates."""
        if self.path.stem == "learning_rates":
            raise OSError("no space left on device")
        super().write(batch)


def test_a_writer_that_fails_costs_its_own_file(tmp_path: Path) -> None:
    """The steps count as failed, the file is named, and the built-in formats have every row."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=[FullDisk]) as telemetry:
        train(telemetry, model, optimizer, 3)
    assert telemetry.stats().failed == 3
    assert batches(run / "telemetry" / "gradient_norms.full") == [1, 2, 3]
    assert open_run(run).steps()["batch_idx"].tolist() == [1, 2, 3]
    events = open_run(run).events()
    assert {"learning_rates.full", "steps.full"} == set(events[events["event"] == "failed_write"]["column"])
    assert validate_run(run) == []


class LinesWithEvents(JsonLines):  # type: ignore[misc, valid-type]  # as above
    """Writes the events too."""

    takes_events = True


def test_a_writer_that_takes_events(tmp_path: Path) -> None:
    """Its file of events has the rows of events.csv, and a resumed run supersedes it like any other."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    options: dict[str, Any] = {"collect_every_n": 1, "writers": [LinesWithEvents]}
    with TelemetryCollector(model, optimizer, run, **options) as telemetry:
        telemetry.step(0, values={"loss": float("nan")})
    lines = (run / "telemetry" / "events.jsonl").read_text()
    events = [json.loads(line) for line in lines.splitlines()]
    assert [event["message"] for event in events] == open_run(run).events()["message"].tolist()
    assert {"misuse", "non_finite"} == {event["event"] for event in events}
    with TelemetryCollector(model, optimizer, run, **options) as telemetry:
        train(telemetry, model, optimizer, 1)
    assert (run / "telemetry" / "superseded" / "attempt-2" / "events.jsonl").read_text() == lines
    assert validate_run(run) == []


def test_an_object_that_makes_writers(tmp_path: Path) -> None:
    """It is asked for a writer of each table, gets the events, and leaves no file behind."""
    run, (model, optimizer), sent = tmp_path / "run", tiny(), list[str]()
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=[Alerts(sent.append)]) as telemetry:
        telemetry.step(0, values={"loss": float("nan")})
    events = open_run(run).events()
    assert sent == [f"batch 1: {message}" for message in events["message"]]
    assert telemetry.stats().written == 1
    assert not list((run / "telemetry").glob("*.alerts"))
    assert validate_run(run) == []


def test_a_function_that_fails_costs_no_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The events are in their file once, the rows are written, and the log names what failed."""

    def fail(_: str) -> None:
        raise ConnectionError("no network")

    run, (model, optimizer) = tmp_path / "run", tiny()
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, writers=[Alerts(fail)]) as telemetry:
        for batch in range(3):
            telemetry.step(0, values={"loss": float("nan")})
            assert telemetry.flush(), batch
    assert open_run(run).events()["event"].tolist().count("non_finite") == 3
    assert telemetry.stats().written == 3
    assert any("events.alerts could not be written: ConnectionError: no network." in one for one in caplog.messages)


class Unnamed(ParameterNorms):  # type: ignore[misc, valid-type]  # a class of the page
    """A table without the key columns."""

    table = Table(name="unnamed", description="", columns=(Column(name="x", dtype="int64", description=""),))


class Taken(ParameterNorms):  # type: ignore[misc, valid-type]  # as above
    """A built-in table's name."""

    table = Table(name="Steps", description="", columns=KEY_COLUMNS)


class Predictions(ParameterNorms):  # type: ignore[misc, valid-type]  # as above
    """The name of the contract of prediction files."""

    table = Table(name="predictions", description="", columns=KEY_COLUMNS)


class Dotted(JsonLines):  # type: ignore[misc, valid-type]  # as above
    """A suffix that is not a single word."""

    suffix = "../x"


class Csv(JsonLines):  # type: ignore[misc, valid-type]  # as above
    """A built-in suffix."""

    suffix = "CSV"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measures": ParameterNorms}, "measures: expected a list of subclasses of Measure"),
        ({"measures": [JsonLines]}, "measures: expected subclasses of Measure"),
        ({"measures": [object()]}, "give the class, not an object"),
        ({"measures": [Measure]}, "Measure does not define columns, read"),
        ({"measures": [Unnamed]}, "begin with KEY_COLUMNS"),
        ({"measures": [Taken]}, "the table name 'Steps' of Taken is taken"),
        ({"measures": [Predictions]}, "the table name 'predictions' of Predictions is taken"),
        ({"measures": [ParameterNorms, ParameterNorms]}, "'parameter_norms' of ParameterNorms is taken"),
        ({"writers": JsonLines}, "writers: expected a list of subclasses of Writer"),
        ({"writers": ["jsonl"]}, "or objects that make one when they are called"),
        ({"writers": [Alerts]}, ": give an object of it"),
        ({"writers": [print]}, ".suffix to be letters and digits, got None"),
        ({"writers": [Writer]}, "Writer does not define close, sync, write"),
        ({"writers": [Dotted]}, "suffix to be letters and digits"),
        ({"writers": [Csv]}, "the suffix 'CSV' of Csv is taken"),
        ({"writers": [JsonLines, JsonLines]}, "the suffix 'jsonl' of JsonLines is taken"),
    ],
)
def test_what_cannot_be_used_is_refused_where_it_is_given(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """As wrong arguments are everywhere: what was expected, what was given, what to do."""
    with pytest.raises(MisuseError, match=re.escape(message)):
        TelemetryCollector(*tiny(), tmp_path, **arguments)
