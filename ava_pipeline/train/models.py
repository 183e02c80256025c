"""A torchvision ResNet with an MLP head that outputs ten logits."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ava_pipeline.config.models import ModelConfig
from ava_pipeline.contract.builtin_tables import NUM_SCORES
from ava_pipeline.errors import ConfigError

_SHOWN_KEYS = 3


class AvaModel(nn.Module):
    """Maps images [batch, 3, height, width] to logits [batch, 10], with a ResNet whose `fc` is the identity."""

    def __init__(self, backbone: nn.Module, num_features: int, *, hidden_sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        # With one hidden layer, the layers of the head that have parameters are 0 and 3.
        self.mlp_head = nn.Sequential(*_head_layers((num_features, *hidden_sizes), dropout))

    def forward(self, images: Tensor) -> Tensor:
        """Predict the logits of the score distribution."""
        logits: Tensor = self.mlp_head(self.backbone(images))
        return logits


def build_model(config: ModelConfig) -> AvaModel:
    """Build the model, its head from torch's current seed; raise ConfigError if the weights cannot be used."""
    pretrained = config.weights == "imagenet"
    backbone = _imagenet(config.backbone) if pretrained else torchvision.models.get_model(config.backbone, weights=None)
    num_features = int(backbone.fc.in_features)
    backbone.fc = nn.Identity()
    if not pretrained and config.weights != "none":
        _load_weights(backbone, Path(config.weights))
    return AvaModel(backbone, num_features, hidden_sizes=config.hidden_sizes, dropout=config.dropout)


def _head_layers(sizes: Sequence[int], dropout: float) -> list[nn.Module]:
    hidden = [[nn.Linear(size, wider), nn.ReLU(), nn.Dropout(dropout)] for size, wider in pairwise(sizes)]
    return [*(layer for block in hidden for layer in block), nn.Linear(sizes[-1], NUM_SCORES)]


def _imagenet(name: str) -> Any:
    try:
        return torchvision.models.get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.weights is 'imagenet', but torchvision's weights of {name} could not be downloaded ({error}). "
            "Download them on a machine with network access and give the file's path as model.weights, or train from "
            "random weights with --set model.weights=none."
        ) from error


def _load_weights(backbone: nn.Module, path: Path) -> None:
    given = _backbone_part(_read_state_dict(path))
    wanted = backbone.state_dict()
    problems = [
        *(f"{key} is missing" for key in wanted.keys() - given.keys()),
        *(f"{key} is unknown" for key in given.keys() - wanted.keys()),
        *(
            f"{key}: expected shape {list(wanted[key].shape)}, got {list(given[key].shape)}"
            for key in wanted.keys() & given.keys()
            if given[key].shape != wanted[key].shape
        ),
    ]
    if problems:
        raise ConfigError(
            f"model.weights: {path} does not fit model.backbone in {len(problems)} places: "
            f"{'; '.join(sorted(problems)[:_SHOWN_KEYS])}. Give weights of that backbone, or set model.backbone to "
            "theirs."
        )
    backbone.load_state_dict(dict(given))


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"model.weights: expected 'imagenet', 'none' or the path of a state dict, got {str(path)!r}, which is not "
            "a file."
        ) from error
    except Exception as error:  # torch's reader raises almost anything for a file of another format
        raise ConfigError(
            f"model.weights: {path} cannot be read as a state dict; "
            "save one with torch.save(model.state_dict(), path). Other pickles are refused, because they can run code."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(
            f"model.weights: {path} holds a {type(found).__name__}, not a mapping of names to tensors; "
            "save one with torch.save(model.state_dict(), path)."
        )
    return found


def _backbone_part(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the ResNet of an AvaModel, or a torchvision ResNet without its classifier."""
    prefix = "backbone."
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inner or {key: value for key, value in state.items() if not key.startswith("fc.")}
