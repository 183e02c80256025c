"""The model has the parts whose norms telemetry names, and loads weights only if they fit."""

import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from ava_pipeline.config.models import ModelConfig
from ava_pipeline.errors import ConfigError
from ava_pipeline.train.models import build_model

SMALL = ModelConfig(backbone="resnet18", weights="none", hidden_sizes=(16,), dropout=0.25)


def test_the_heads_layers_stand_where_the_columns_say() -> None:
    """mlp_layer_0 and mlp_layer_3 are the linear layers of a head with one hidden layer."""
    model = build_model(SMALL)
    assert [type(layer) for layer in model.mlp_head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [name for name, _ in model.named_children()] == ["backbone", "mlp_head"]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("hidden", "num_layers"), [((), 1), ((8, 4), 7)])
def test_the_head_has_as_many_layers_as_asked_for(hidden: tuple[int, ...], num_layers: int) -> None:
    """Without hidden layers it is one linear layer."""
    model = build_model(SMALL.model_copy(update={"hidden_sizes": hidden}))
    assert len(model.mlp_head) == num_layers


def test_resnet50_gives_its_wider_features_to_the_head() -> None:
    """2048 features instead of 512."""
    model = build_model(SMALL.model_copy(update={"backbone": "resnet50"}))
    first = model.mlp_head[0]
    assert isinstance(first, nn.Linear)
    assert first.in_features == 2048


@pytest.mark.parametrize("form", ["torchvision", "ours"])
def test_weights_come_from_a_state_dict(tmp_path: Path, form: str) -> None:
    """Of a torchvision ResNet, whose classifier is dropped, or of a model of this package."""
    source = torchvision.models.resnet18() if form == "torchvision" else build_model(SMALL)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = build_model(SMALL.model_copy(update={"weights": str(tmp_path / "weights.pt")}))
    backbone = source if form == "torchvision" else source.backbone
    assert torch.equal(model.backbone.conv1.weight, backbone.conv1.weight)  # type: ignore[union-attr,arg-type]  # a ResNet


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """The message names the first differences."""
    path = tmp_path / "weights.pt"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(ConfigError, match=r"does not fit model.backbone in \d+ places: layer1\.2\..* is unknown"):
        build_model(SMALL.model_copy(update={"weights": str(path)}))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no weights", "cannot be read as a state dict"),
        (b"", "cannot be read as a state dict"),
        (pickle.dumps(print), "cannot be read as a state dict"),
        (None, "expected 'imagenet', 'none' or the path of a state dict, got"),
    ],
    ids=["text", "empty", "pickle", "missing"],
)
def test_files_without_weights_are_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """The code in other pickles does not run."""
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        build_model(SMALL.model_copy(update={"weights": str(path)}))


def test_a_list_of_tensors_is_not_a_state_dict(tmp_path: Path) -> None:
    """The message says what the file contains instead."""
    torch.save([torch.zeros(1)], tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="holds a list"):
        build_model(SMALL.model_copy(update={"weights": str(tmp_path / "weights.pt")}))


def test_without_a_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message suggests training without pretrained weights."""

    def offline(*_args: object, **_options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ConfigError, match=r"could not be downloaded .*no route to host.* --set model.weights=none"):
        build_model(SMALL.model_copy(update={"weights": "imagenet"}))
