"""The AVA training job: from a config to a finished run directory."""

import logging
from typing import Any

import torch

from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.config.load import dump_config
from ava_pipeline.config.models import RunConfig
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import TRAIN_JOB
from ava_pipeline.contract.untrusted import check_name
from ava_pipeline.errors import ConfigError, GroupsError, MisuseError
from ava_pipeline.train.batch_step import BatchStep
from ava_pipeline.train.checkpoint import Checkpoint, check_fits, load_checkpoint, seed_all
from ava_pipeline.train.data.prepare import TrainData, prepare_data
from ava_pipeline.train.display import Display, Outcome
from ava_pipeline.train.loop import Loop, StopRequested, StopSignals
from ava_pipeline.train.models import AvaModel, build_model
from ava_pipeline.train.optim import Precision, Schedule, build_optimizer, pick_device
from ava_pipeline.train.run_dir import check_free, check_writable, rewind, sole_writer, start_over

_log = logging.getLogger("ava_pipeline")


def train(config: RunConfig, display: Display, *, resume: bool = False, restart: bool = False) -> Outcome:
    """Train a model as the config says.

    With `resume`, continue from the checkpoint in the output directory, or start if there is no checkpoint yet. With
    `restart`, start over in a used output directory; its files move to superseded/.

    Raise RunExistsError if the output directory holds a run and neither is set, RunInUseError if another process writes
    into it, DamagedFileError if a link leads out of it, ConfigError or DataError if a setting, a path, the device or
    the data cannot be used, and TrainingError if a checkpoint cannot be used, a file cannot be written, or a loss is
    not finite and the config says to stop.
    """
    layout = RunLayout(config.output_dir)
    if not (resume or restart):
        check_free(layout)
    check_writable(layout)
    check_name(layout, layout.checkpoint)
    checkpoint = load_checkpoint(layout.checkpoint) if resume and layout.checkpoint.exists() else None
    device = pick_device(config.device)
    precision = Precision.of(config.train.amp, device)
    model = _model(config, device)
    data = prepare_data(config, layout, display, resume=checkpoint is not None)
    fingerprint = _fingerprint(config, data)
    if checkpoint is not None:
        check_fits(layout.checkpoint, checkpoint.fingerprint, fingerprint)
    step = _batch_step(config, data, model, precision)
    loop = Loop(config, layout=layout, data=data, step=step, fingerprint=fingerprint, display=display)
    with sole_writer(layout):
        _begin(loop, layout, config, data, checkpoint)
        stopped_by = _run(loop, step)
    return Outcome(
        layout=layout,
        results=loop.position.results,
        constant=data.constant_predictor(),
        costs=step.costs,
        stopped_by=stopped_by,
        generated=config.data.sample is not None,
    )


def _run(loop: Loop, step: BatchStep) -> int | None:
    """Train, and return the signal that stopped training, if one did."""
    try:
        with StopSignals() as stop, step.telemetry:
            loop.run(stop)
    except StopRequested as asked:
        return asked.signum
    return None


def _begin(loop: Loop, layout: RunLayout, config: RunConfig, data: TrainData, checkpoint: Checkpoint | None) -> None:
    """Prepare the run directory and the loop to start or to continue."""
    if checkpoint is None:
        start_over(layout, dump_config(config))
    else:
        loop.restore(checkpoint)
        rewind(layout, dump_config(config), loop.position.results)
        _log_position(layout, checkpoint, config.train.epochs)
    data.save(layout)


def _log_position(layout: RunLayout, checkpoint: Checkpoint, epochs: int) -> None:
    if checkpoint.epoch < epochs:
        _log.info("Continuing from %s: epoch %d, batch %d.", layout.checkpoint, checkpoint.epoch, checkpoint.batch)
    else:
        _log.info(
            "Nothing left to do: %s holds all %d epochs. Raise train.epochs to train longer.",
            layout.checkpoint,
            checkpoint.epoch,
        )


def _model(config: RunConfig, device: torch.device) -> AvaModel:
    """Build the model and check telemetry.groups before the data is read, which takes longer."""
    seed_all(config.seed)
    model = build_model(config.model).to(device)
    try:
        find_groups(model, config.telemetry.groups)
    except (GroupsError, MisuseError) as error:
        raise ConfigError(f"telemetry.groups: {error}") from error
    return model


def _batch_step(config: RunConfig, data: TrainData, model: AvaModel, precision: Precision) -> BatchStep:
    optimizer = build_optimizer(model, config.optim)
    scaler = precision.grad_scaler()
    num_batches = len(data.train_batches(0))
    schedule = Schedule.of(
        config.optim,
        batches_per_epoch=num_batches,
        steps_per_epoch=-(-num_batches // config.train.accumulate),
        epochs=config.train.epochs,
    )
    run_info = {"job": TRAIN_JOB, "backbone": config.model.backbone, "num_train_images": len(data.train)}
    return BatchStep(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision,
        scaler=scaler,
        telemetry=TelemetryCollector(
            model, optimizer, config.output_dir, config.resolved_telemetry(), grad_scaler=scaler, run_info=run_info
        ),
        clip_norm=config.train.clip_norm,
        drop_nonfinite=config.train.on_nonfinite_loss == "continue",
    )


def _fingerprint(config: RunConfig, data: TrainData) -> dict[str, Any]:
    """The settings that must stay the same for a checkpoint to be resumed: the network, the images and their order."""
    return {
        "seed": config.seed,
        "model.backbone": config.model.backbone,
        "model.hidden_sizes": list(config.model.hidden_sizes),
        "optim.name": config.optim.name,
        "train.batch_size": config.train.batch_size,
        "train.accumulate": config.train.accumulate,
        **data.fingerprint(),
    }
