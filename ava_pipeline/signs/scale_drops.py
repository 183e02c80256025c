"""Optimizer steps that a GradScaler left out, told by its scale."""

from collections.abc import Iterator, Mapping, Sequence

from ava_pipeline.contract.events import Event


def scale_drop_events(
    rows: Sequence[Mapping[str, object]], scale_before: float | None, batch_before: int
) -> Iterator[Event]:
    """One event for each row whose loss scale is lower than the row's before it.

    `torch.amp.GradScaler` lowers its scale only after a step whose gradients were not finite, which it skips. So the
    step is that of the row before, or one between the two rows. Where the scale also grew there, a drop can stay
    unseen.

    Args:
        rows: of `steps`, in batch order.
        scale_before: of the row before the first; None where it is not known.
        batch_before: of that row, or the first batch of the attempt.
    """
    for row in rows:
        scale, batch_idx, epoch = row["loss_scale"], row["batch_idx"], row["epoch"]
        if not (isinstance(scale, float) and isinstance(batch_idx, int) and isinstance(epoch, int)):
            continue
        # A drop before an attempt's first batch is of another one's.
        if scale_before is not None and scale < scale_before and batch_before < batch_idx:
            yield Event(
                event="skipped_step",
                severity="info",
                batch_idx=batch_before,
                batch_idx_end=batch_idx - 1,
                epoch=epoch,
                column="loss_scale",
                value=scale,
                message=f"the loss scale fell from {scale_before:g} to {scale:g}: at least one step was skipped.",
            )
        scale_before, batch_before = scale, batch_idx
