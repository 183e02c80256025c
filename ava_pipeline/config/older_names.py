"""What settings of older, hand-written training code are called here, for the message about an unknown key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

# Settings of older collectors that are measures of one's own here.
_RECIPES: Mapping[str, str] = {
    "track_embeddings": "Embedding norms are a measure of your own: docs/extending.md has it. Remove the key",
    "track_arcface_weights": "Class weights are a group like others: give groups={'arcface': model.arcface} and "
    "track_weight_delta, or write a measure of your own, as docs/extending.md shows. Remove the key",
}
# Older key -> the setting here. A setting that a config does not have is not named.
_NAMES: Mapping[str, str] = {
    "ava_txt": "data.labels",
    "image_dir": "data.images",
    "train_ratio": "data.split.train",
    "val_ratio": "data.split.val",
    "test_ratio": "data.split.test",
    "min_reviewers": "data.min_votes",
    "cnn_backbone": "model.backbone",
    "mlp_hidden_dims": "model.hidden_sizes",
    "pretrained": "model.weights",
    "crop_size": "data.image_size",
    "optimizer": "optim.name",
    "learning_rate": "optim.base_lr",
    "differential_lr": "optim.head_lr_mult",
    "weight_decay": "optim.weight_decay",
    "momentum": "optim.momentum",
    "batch_size": "train.batch_size",
    "max_epochs": "train.epochs",
    "loss_type": "train.loss",
    "early_stop_patience": "train.early_stop_patience",
}
_VALUES: Mapping[str, str] = {
    "pretrained": "imagenet for true, none for false",
    "differential_lr": "10 for true, 1 for false",
}


def older_name_sentence(key: str, value: object, config: type[BaseModel]) -> str | None:
    """The sentence about a key of older code: its name here, or those of the keys in its block; None if unknown.

    `config` is the model of the whole config.
    """
    if key in _RECIPES:
        return _RECIPES[key]
    if isinstance(value, dict):
        names = [text for inner in _leaves(value) if (text := _name_here(inner, config)) is not None]
        return f"unknown block; its keys have other places here: {'; '.join(names)}" if names else None
    name = _name_here(key, config)
    return None if name is None else f"unknown key; {name}"


def _leaves(block: Mapping[Any, Any]) -> Iterator[str]:
    for key, value in block.items():
        yield str(key)
        yield from _leaves(value) if isinstance(value, dict) else ()


def _name_here(key: str, config: type[BaseModel]) -> str | None:
    """`max_epochs is train.epochs here`; None if the config has no such setting."""
    name = _NAMES.get(key)
    if name is None or not _has_setting(config, name.split(".")):
        return None
    values = f" ({_VALUES[key]})" if key in _VALUES else ""
    return f"{key} is {name} here{values}"


def _has_setting(model: type[BaseModel], keys: Sequence[str]) -> bool:
    field = model.model_fields.get(keys[0])
    if field is None or len(keys) == 1:
        return field is not None
    inner = field.annotation
    return isinstance(inner, type) and issubclass(inner, BaseModel) and _has_setting(inner, keys[1:])
