"""One pass over the validation images."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ava_pipeline.metrics import Metrics, mean_scores, prediction_metrics
from ava_pipeline.train.batch_step import BatchStep

if TYPE_CHECKING:
    from ava_pipeline.train.dataset import Batches


def validate(
    step: BatchStep, batches: "Batches", *, epoch: int, save_predictions: bool, on_batch: Callable[[int], None]
) -> Metrics:
    """Predict every validation image with the model as it is.

    Args:
        step: holds model, precision and telemetry; the model is in eval mode during the pass and in train mode after,
            whatever ends it.
        batches: yields image ids, images and votes.
        epoch: 0-based, names the predictions file.
        save_predictions: write that file; it appears complete or, where `on_batch` raises, not at all.
        on_batch: called after each batch with the number done.

    Returns:
        The metrics that `ava-pipeline evaluate` finds in the predictions file.
    """
    device = next(step.model.parameters()).device
    gathered: list[tuple[Tensor, Tensor]] = []
    saving: Any = step.telemetry.val_predictions(epoch) if save_predictions else nullcontext()
    step.model.eval()
    try:
        with torch.inference_mode(), saving as predictions:
            for done, (image_ids, images, votes) in enumerate(batches, start=1):
                with step.precision.autocast():
                    logits = step.model(images.to(device, non_blocking=True))
                pred_dist = logits.float().softmax(dim=1)
                if predictions is not None:
                    predictions.add(image_ids, pred_dist, votes)
                gathered.append((pred_dist, votes))
                on_batch(done)
    finally:
        step.model.train()
    return _metrics(*(torch.cat(parts).cpu().numpy() for parts in zip(*gathered, strict=True)))


def _metrics(softmax: npt.NDArray[np.float32], votes: npt.NDArray[np.int64]) -> Metrics:
    """Take shares and means as the predictions file has them, so that both give the same figures."""
    shares = softmax.astype(np.float64)
    pred = shares / shares.sum(axis=1)[:, None]
    counts = votes.sum(axis=1, dtype=np.int64)
    gt_dist = votes / counts[:, None]
    return prediction_metrics(
        pred.astype(np.float32), gt_dist.astype(np.float32), mean_scores(pred), mean_scores(votes) / counts
    )
