"""The user's model and optimizer stay as they are: they can be saved, copied, scripted and exported at any moment."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ava_pipeline import TelemetryCollector
from tests.collect.models import TinyNet, backward, tiny

X = torch.ones(2, 6)


def assert_untouched(model: TinyNet) -> None:
    """No module has a hook, and no parameter."""
    for module in model.modules():
        hooks = {name: held for name, held in vars(module).items() if "hooks" in name and held}
        assert hooks == {}
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def loaded(model: nn.Module) -> nn.Module:
    """The model after `torch.save` and `torch.load`, as a whole."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    saved: nn.Module = torch.load(file, weights_only=False)
    return saved


def assert_can_be_passed_on(model: TinyNet) -> None:
    """Each way of copying the model gives one that computes the same."""
    assert_untouched(model)
    expected: Tensor = model(X)
    for copied in (copy.deepcopy(model), loaded(model), torch.jit.script(model)):
        assert torch.equal(copied(X), expected)
    assert torch.equal(torch.export.export(model, (X,)).module()(X), expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by torch; users still do
@pytest.mark.parametrize("scales", [False, True])
def test_a_model_can_be_saved_copied_scripted_and_exported_at_any_moment(tmp_path: Path, scales: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Between the constructor and `close`, and after it: telemetry puts nothing on a model."""
    model, optimizer = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if scales else None
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, grad_scaler=scaler) as telemetry:
        assert_can_be_passed_on(model)
        for batch in range(2):
            backward(model, batch, scaler=scaler)
            assert_untouched(model)
            telemetry.step()
            assert_can_be_passed_on(model)
            telemetry.clip_grad_norm_(1.0)
            assert_untouched(model)
            optimizer.step()
            optimizer.zero_grad()
            assert_untouched(model)
    assert_can_be_passed_on(model)


def test_copies_of_an_optimizer_are_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a deep copy nor a pickle has a hook, so a step of theirs is not taken for one of the training's."""
    model, optimizer = tiny()
    with TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1) as telemetry:
        for batch in range(3):
            copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]  # noqa: S301  # pickled here
            for copied in copies:
                assert not copied._optimizer_step_post_hooks
                copied.step()
            backward(model, batch)
            telemetry.step()
            optimizer.step()
            optimizer.zero_grad()
    assert caplog.records == []
    assert not optimizer._optimizer_step_post_hooks
