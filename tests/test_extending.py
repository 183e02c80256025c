"""docs/extending.md holds: one file is enough for a new measure."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from ava_pipeline import TelemetryCollector, open_run
from ava_pipeline.collect import measures
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.validate.validate import validate_run
from tests.collect.models import TinyNet, tiny, train

DOC = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def weight_norms(tmp_path: Path) -> Iterator[None]:
    """The file of the docs, put where measures are found."""
    found = re.search(r"```python\n# ava_pipeline/collect/measures/(\w+)\.py\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert found
    folder = tmp_path / "measures"
    folder.mkdir()
    (folder / f"{found[1]}.py").write_text(found[2])
    measures.__path__.append(str(folder))
    yield
    measures.__path__.remove(str(folder))
    sys.modules.pop(f"{measures.__name__}.{found[1]}")


def reference(model: TinyNet) -> float:
    """The head's weights as one vector, in float64."""
    return float(torch.cat([one.detach().double().reshape(-1) for one in model.mlp_head.parameters()]).norm())


def test_weight_norms_in_one_file(weight_norms: None, tmp_path: Path) -> None:
    """Both formats, the schema, the manifest and validation follow from the declaration."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    before = reference(model)
    with TelemetryCollector(model, optimizer, run, collect_every_n=1) as telemetry:
        train(telemetry, model, optimizer, 3)
    csv = pd.read_csv(run / "telemetry" / "weight_norms.csv")
    parquet = pq.read_table(run / "telemetry" / "weight_norms.parquet")
    declared = open_run(run).manifest.tables["weight_norms"].declaration
    assert csv["mlp_head"][0] == pytest.approx(before, rel=1e-5)
    assert np.array_equal(csv["overall"].to_numpy(np.float32), parquet["overall"].to_numpy())
    assert declared.table.json_schema()["title"] == "weight_norms"
    assert parquet.schema.equals(RunTable.model_validate(declared).arrow_schema)
    assert open_run(run).table("weight_norms")["batch_idx"].tolist() == [1, 2, 3]
    assert validate_run(run) == []


def test_its_damage_is_found(weight_norms: None, tmp_path: Path) -> None:
    """The rule of the sum of squares holds for the new table as for the old ones."""
    run, (model, optimizer) = tmp_path / "run", tiny()
    with TelemetryCollector(model, optimizer, run, collect_every_n=1, formats=["csv"]) as telemetry:
        train(telemetry, model, optimizer, 3)
    path = run / "telemetry" / "weight_norms.csv"
    frame = pd.read_csv(path)
    frame["mlp_layer_0"] = frame["mlp_layer_0"].to_numpy() * np.array([1.0, 1.5, 1.0])
    frame.to_csv(path, index=False)
    assert [(one.id, one.row) for one in validate_run(run)] == [("norms.head-sum", 2)]
