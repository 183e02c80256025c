"""The loss is the squared EMD of the NIMA paper, computed in float32 also under autocast."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ava_pipeline.train.losses import LossWatch, drop_unless, squared_emd

# Truth and predictions of the worked example of the NIMA reference code.
TRUTH = [0, 0, 0, 0, 0, 0, 0, 9, 1, 0]
FAR = [0.9, 0, 0, 0, 0, 0, 0, 0, 0.1, 0]


def logits_of(dist: list[float]) -> torch.Tensor:
    """Logits whose softmax is the distribution."""
    return torch.tensor([dist]).log()


def test_the_worked_example() -> None:
    """Its EMD is 0.752994; the loss is the square, and accepts vote counts."""
    loss = squared_emd(logits_of(FAR), torch.tensor([TRUTH]))
    assert loss.item() == pytest.approx(0.752994**2, abs=1e-6)


def test_a_batch_is_the_mean_of_its_images() -> None:
    """The number of votes of an image does not matter."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 10, generator=generator)
    votes = torch.randint(0, 200, (5, 10), generator=generator)
    each = [squared_emd(logits[n : n + 1], votes[n : n + 1] * (n + 1)).item() for n in range(5)]
    assert squared_emd(logits, votes).item() == pytest.approx(np.mean(each), rel=1e-6)


def test_a_perfect_prediction_has_loss_and_gradient_zero() -> None:
    """The gradient of the EMD itself would be infinite there."""
    logits = torch.zeros(1, 10, requires_grad=True)
    loss = squared_emd(logits, torch.full((1, 10), 7))
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it out
    assert loss.item() < 1e-12
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_half_precision_logits_are_summed_in_float32() -> None:
    """Also under autocast; sums in half precision would lose small differences."""
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    votes = torch.ones(4, 10, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = squared_emd(logits, votes)
    assert loss.dtype == torch.float32
    assert loss.item() == squared_emd(logits.float(), votes).item()


@pytest.mark.parametrize("keep", [True, False])
def test_gradients_are_dropped_or_kept_whole(keep: bool) -> None:  # noqa: FBT001  # what is parametrized.
    """Dropped gradients are zero, even if they were nan."""
    gradients = [torch.tensor([1.0, torch.nan]), torch.tensor(2.0)]
    drop_unless(torch.tensor(keep), gradients)
    assert gradients[1].item() == (2.0 if keep else 0.0)
    assert bool(gradients[0].isnan().any()) is keep


class NeverReached:
    """An event of a device that has not come so far."""

    def record(self) -> None:
        """Queue it."""

    def query(self) -> bool:
        """Whether the device has reached it."""
        return False


def test_a_loss_comes_to_the_host_whatever_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.set_default_device("cuda")` would otherwise put the host's memory on the device."""
    monkeypatch.setattr(torch.cuda, "Event", NeverReached)
    with FakeTensorMode(), torch.device("cuda"):
        watch = LossWatch(print)
        watch.add(torch.empty(()), epoch=0, batch=1, image_ids=[7])
    assert watch._pending[0].host.device.type == "cpu"
