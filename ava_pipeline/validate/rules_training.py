"""Runs of `ava-pipeline train`: their config, and what it promises."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.config.load import load_config
from ava_pipeline.config.models import RunConfig
from ava_pipeline.contract.builtin_tables import EPOCH_METRICS
from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import check_name
from ava_pipeline.errors import ConfigError, DamagedFileError
from ava_pipeline.read.arrays import integers, nulls
from ava_pipeline.read.csv import read_csv
from ava_pipeline.validate import rules_manifest, rules_predictions
from ava_pipeline.validate.checked_run import CheckedRun
from ava_pipeline.validate.rules_files import relative, without_path
from ava_pipeline.validate.violations import Breach, Cell, Rule

JOB = "ava-pipeline train"

INVALID = Rule("config.invalid", "config.yaml is a config of ava-pipeline train.")
MISSING = Rule("config.missing", "A run of ava-pipeline train holds its config.yaml.")
METRICS = Rule("metrics.missing", "A run of ava-pipeline train that finished an epoch holds metrics.csv.")
NO_ROW = Rule("telemetry.no-row", "A run whose config has telemetry on is long enough for a row of it.", "warning")
CHECKPOINT = Rule("files.checkpoint", "Every part of a checkpoint of ava-pipeline train has its checksum.")

TRAINING_RULES = (INVALID, MISSING, METRICS, NO_ROW, CHECKPOINT)


def check_training(run: CheckedRun) -> Iterator[Breach]:
    """The config, the checkpoint, and whether what the config promises is there; other loops promise nothing."""
    if not run.layout.config.exists():
        yield from () if run.is_open else _no_config(run)
        return
    yield from _checkpoint(run.layout)
    try:
        check_name(run.layout, run.layout.config)
        config = load_config(run.layout.config)
    except (ConfigError, DamagedFileError) as error:
        for line in str(error).splitlines():
            yield INVALID.found(relative(run.layout, run.layout.config), without_path(line, run.layout.config))
        return
    if not run.is_open:
        yield from _metrics(run)
        yield from _predictions(run.layout, config)
        yield from _telemetry(run.layout, config)


def _no_config(run: CheckedRun) -> Iterator[Breach]:
    """Only the job's own words tell that there was one: a foreign loop may keep metrics.csv and checkpoints/ too."""
    if run.manifest is not None and run.manifest.run_info.get("job") == JOB:
        proof = f"the manifest's run_info says {JOB!r}"
    elif run.layout.metrics.exists() and _split(run.layout).exists():
        proof = f"metrics.csv and split.csv are those of {JOB}"
    else:
        return
    yield MISSING.found(relative(run.layout, run.layout.config), f"there is none, though {proof}.")


def _checkpoint(layout: RunLayout) -> Iterator[Breach]:
    if not layout.checkpoint.is_file():
        return
    try:
        check_name(layout, layout.checkpoint)
        with zipfile.ZipFile(layout.checkpoint) as parts:
            damaged = parts.testzip()
        reason = damaged and f"{damaged} in it does not have its checksum"
    # Whatever a damaged zip makes its reader stumble over.
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        reason = f"it cannot be read as a checkpoint: {error}".rstrip(".")
    if reason:
        message = f"{reason}; train --resume refuses it. Restore it from a backup, or begin anew with --restart."
        yield CHECKPOINT.found(relative(layout, layout.checkpoint), message)


def _metrics(run: CheckedRun) -> Iterator[Breach]:
    if run.layout.metrics.exists():
        return
    predicted = [file.path.name for file in prediction_files(run.layout) if file.name == "val"]
    if predicted:
        proof = f"predictions/{predicted[-1]} is there"
    elif run.manifest is not None and run.manifest.status == "finished":
        proof = "the manifest says that training finished"
    else:
        return
    yield METRICS.found(relative(run.layout, run.layout.metrics), f"there is none, though {proof}.")


def _predictions(layout: RunLayout, config: RunConfig) -> Iterator[Breach]:
    """A single file that is missing is told beside the others, with or without a config."""
    if config.save_val_predictions and not any(file.name == "val" for file in prediction_files(layout)):
        for row, epoch in enumerate(_epochs(layout), start=1):
            file = relative(layout, layout.epoch_predictions(epoch))
            cell = Cell(f"{file} is not there, though config.yaml has save_val_predictions.", "epoch", str(epoch))
            yield rules_predictions.PREDICTIONS_MISSING.found(relative(layout, layout.metrics), cell, row=row)


def _telemetry(layout: RunLayout, config: RunConfig) -> Iterator[Breach]:
    """A folder without a manifest is told with or without a config."""
    every, num_batches = config.telemetry.collect_every_n, _num_batches(layout, config)
    if not config.telemetry.enabled or layout.telemetry.is_dir() or not num_batches:
        return
    message = (
        f"there is none, though config.yaml has telemetry on, and of at least {num_batches} batches every "
        f"{every} was to be collected."
    )
    if num_batches >= every:
        yield rules_manifest.MANIFEST_MISSING.found(relative(layout, layout.manifest), message)
    else:
        lower = f"{message} Set telemetry.collect_every_n to {num_batches} or less to see gradients of so short a run."
        yield NO_ROW.found(relative(layout, layout.config), lower)


def _num_batches(layout: RunLayout, config: RunConfig) -> int:
    """Batches that were trained on at least: those of the epochs in metrics.csv."""
    try:
        sets = csv.read_csv(_split(layout)).column("set").to_pylist()
    except (OSError, KeyError, pa.ArrowException):
        sets = []  # nobody knows how many images trained: at least one batch
    return len(_epochs(layout)) * max(1, sets.count("train") // config.train.batch_size)


def _epochs(layout: RunLayout) -> list[int]:
    """The epochs in metrics.csv; none where it cannot be read, which the rules of CSV files tell."""
    try:
        rows = read_csv(layout.metrics, RunTable.of(EPOCH_METRICS))
    except (FileNotFoundError, DamagedFileError):
        return []
    return [] if nulls(rows.column("epoch")).any() else [int(epoch) for epoch in integers(rows, "epoch")]


def _split(layout: RunLayout) -> Path:
    return layout.root / "split.csv"
