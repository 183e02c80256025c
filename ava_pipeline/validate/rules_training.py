"""Rules of runs of `ava-pipeline train`: their config, the checkpoint, and the files that the config promises."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.contract.manifest import TRAIN_JOB
from ava_pipeline.contract.untrusted import check_name, check_zip
from ava_pipeline.errors import ConfigError, DamagedFileError
from ava_pipeline.validate import rules_manifest, rules_metrics
from ava_pipeline.validate.checked_run import CheckedRun
from ava_pipeline.validate.listing import Breach, Rule, relative, without_path

if TYPE_CHECKING:
    from ava_pipeline.config.models import RunConfig

INVALID = Rule("config.invalid", "config.yaml is a config of ava-pipeline train.")
MISSING = Rule("config.missing", "A run of ava-pipeline train has its config.yaml.")
METRICS = Rule("metrics.missing", "A run of ava-pipeline train that finished an epoch has metrics.csv.")
NO_ROW = Rule("telemetry.no-row", "A run whose config has telemetry on is long enough for a row.", "warning")
CHECKPOINT = Rule("files.checkpoint", "Every part of a checkpoint of ava-pipeline train matches its checksum.")


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """The config, the checkpoint, and the files that the config promises; a user's own training loop needs none."""
    if run.manifest is not None and not run.is_of_train:
        return  # config.yaml and checkpoints/ of another loop are its own
    if not run.layout.config.exists():
        yield from () if run.is_open else _missing_config(run)
        return
    if not run.is_of_train:
        return
    from ava_pipeline.config.load import load_config  # noqa: PLC0415  # only runs of the training job have a config

    yield from _checkpoint(run.layout)
    try:
        check_name(run.layout, run.layout.config)
        config = load_config(run.layout.config)
    except (ConfigError, DamagedFileError) as error:
        for line in str(error).splitlines():
            yield INVALID.broken(relative(run.layout, run.layout.config), without_path(line, run.layout.config))
        return
    if not run.is_open:
        yield from _missing_metrics(run)
        yield from _missing_predictions(run, config)
        yield from _missing_telemetry(run, config)


def _missing_config(run: CheckedRun) -> Iterator[Breach]:
    """Only files that no other loop writes prove that the job ran: metrics.csv and checkpoints/ may be another's."""
    if run.manifest is not None and run.manifest.is_of_train:
        proof = f"the manifest's run_info names the job {TRAIN_JOB!r}"
    elif run.layout.metrics.exists() and run.layout.split.exists():
        proof = f"metrics.csv and split.csv are those of {TRAIN_JOB}"
    else:
        return
    yield MISSING.broken(relative(run.layout, run.layout.config), f"the file is missing, although {proof}.")


def _checkpoint(layout: RunLayout) -> Iterator[Breach]:
    if not layout.checkpoint.is_file():
        return
    try:
        check_name(layout, layout.checkpoint)
        check_zip(layout.checkpoint)
    except (OSError, DamagedFileError) as error:
        reason = f"it cannot be read as a checkpoint: {error}".rstrip(".")
        message = f"{reason}; train --resume refuses it. Restore it from a backup, or start over with --restart."
        yield CHECKPOINT.broken(relative(layout, layout.checkpoint), message)


def _missing_metrics(run: CheckedRun) -> Iterator[Breach]:
    if run.layout.metrics.exists():
        return
    predicted = [file.path.name for file in prediction_files(run.layout) if file.name == "val"]
    if predicted:
        proof = f"predictions/{predicted[-1]} exists"
    elif run.manifest is not None and run.manifest.status == "finished":
        proof = "training finished, according to the manifest"
    else:
        return
    yield METRICS.broken(relative(run.layout, run.layout.metrics), f"the file is missing, although {proof}.")


def _missing_predictions(run: CheckedRun, config: "RunConfig") -> Iterator[Breach]:
    """All of them; rules_metrics reports single missing files, with or without a config."""
    layout = run.layout
    if config.save_val_predictions and not any(file.name == "val" for file in prediction_files(layout)):
        for row, epoch in enumerate(rules_metrics.epochs_of(run.metrics).tolist(), start=1):
            file = relative(layout, layout.epoch_predictions(epoch))
            message = f"expected {file}, as config.yaml has save_val_predictions; it is missing."
            yield rules_metrics.PREDICTIONS.broken(
                relative(layout, layout.metrics), message, row=row, column="epoch", value=str(epoch)
            )


def _missing_telemetry(run: CheckedRun, config: "RunConfig") -> Iterator[Breach]:
    """The whole folder; rules_manifest reports a folder without a manifest, with or without a config."""
    every, num_batches = config.telemetry.collect_every_n, _num_batches(run, config)
    if not config.telemetry.enabled or run.layout.telemetry.is_dir() or not num_batches:
        return
    message = (
        f"the file is missing, although config.yaml has telemetry on: at least {num_batches} batches were trained, and "
        f"every {every} one row was due."
    )
    if num_batches >= every:
        yield rules_manifest.MISSING.broken(relative(run.layout, run.layout.manifest), message)
    else:
        message = (
            f"config.yaml has telemetry on, but collects a row every {every} batches of at least {num_batches} in all. "
            f"Set telemetry.collect_every_n to {num_batches} or less to record so short a run."
        )
        yield NO_ROW.broken(relative(run.layout, run.layout.config), message)


def _num_batches(run: CheckedRun, config: "RunConfig") -> int:
    """The least number of batches trained: those of the epochs in metrics.csv."""
    try:
        sets = csv.read_csv(run.layout.split).column("set").to_pylist()
    except (OSError, KeyError, pa.ArrowException):
        sets = []  # the number of images is unknown: at least one batch
    return len(rules_metrics.epochs_of(run.metrics)) * max(1, sets.count("train") // config.train.batch_size)
