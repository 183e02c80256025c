"""Two parameter groups, whose learning rates keep their ratio through warm-up and cosine."""

import pytest

from ava_pipeline.config.models import ModelConfig, OptimConfig
from ava_pipeline.train.models import AvaModel, build_model
from ava_pipeline.train.optim import Schedule, build_optimizer


@pytest.fixture(scope="module")
def model() -> AvaModel:
    """A small model."""
    return build_model(ModelConfig(backbone="resnet18", weights="none", hidden_sizes=(8,)))


def schedule(config: OptimConfig, *, epochs: int = 2) -> Schedule:
    """100 batches and 25 optimizer steps an epoch."""
    return Schedule.of(config, batches_per_epoch=100, steps_per_epoch=25, epochs=epochs)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_group_0_is_the_backbone_and_group_1_the_head(model: AvaModel, name: str) -> None:
    """Every parameter is in one of the two, including normalization layers and biases."""
    optimizer = build_optimizer(model, OptimConfig.model_validate({"name": name, "base_lr": 1e-3, "head_lr_mult": 5}))
    backbone, head = optimizer.param_groups
    assert backbone["params"] == list(model.backbone.parameters())
    assert head["params"] == list(model.mlp_head.parameters())
    assert (backbone["lr"], head["lr"]) == (1e-3, 5e-3)


def test_both_groups_follow_the_schedule(model: AvaModel) -> None:
    """The head's rate stays head_lr_mult times the backbone's."""
    config = OptimConfig(base_lr=1e-3, head_lr_mult=10.0, warmup_batches=40)
    optimizer = build_optimizer(model, config)
    schedule(config).apply(optimizer, 4)
    backbone, head = optimizer.param_groups
    assert backbone["lr"] == pytest.approx(0.5e-3)
    assert head["lr"] == pytest.approx(0.5e-2)


def test_warm_up_is_counted_in_batches_or_epochs() -> None:
    """40 batches, 4 a step, are 10 steps, as are 0.4 epochs; the last of them has the full rate."""
    by_batches = schedule(OptimConfig(warmup_batches=40))
    assert by_batches == schedule(OptimConfig(warmup_epochs=0.4))
    assert [by_batches.factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


def test_the_cosine_falls_to_min_lr_and_stays() -> None:
    """Half way the rate is in the middle; after the last step it stays at min_lr."""
    cosine = schedule(OptimConfig(base_lr=1.0, min_lr=0.1))
    assert [cosine.factor(step) for step in (0, 25, 50, 60)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_a_constant_rate_stays() -> None:
    """After warm-up."""
    constant = schedule(OptimConfig(schedule="constant", warmup_batches=8))
    assert [constant.factor(step) for step in (0, 1, 2, 49)] == [0.5, 1.0, 1.0, 1.0]
