"""The groups of a model: which parameters each column measures."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import convnext_tiny, resnet18, vit_b_32
from torchvision.models import googlenet as torchvision_googlenet

from ava_pipeline.collect.groups import find_groups, log_groups
from ava_pipeline.contract.manifest import partitions
from ava_pipeline.errors import GroupsError, MisuseError
from tests.collect.models import TinyNet, ava_resnet18

RESNET = ["overall", "backbone_layer4", "mlp_head"]
WITH_LAYERS = [*RESNET, "mlp_layer_0", "mlp_layer_3"]


class Split(nn.Module):
    """A backbone and a head as children, the backbone a ResNet without its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18()
        self.backbone.fc = nn.Identity()
        self.head = nn.Linear(512, 10)


def convnext() -> nn.Module:
    """A timm model whose last stage is `stages.3`."""
    model: nn.Module = timm.create_model("convnext_atto", num_classes=10)
    return model


def vit() -> nn.Module:
    """A timm transformer whose last block is `blocks.11`."""
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    return model


def googlenet() -> nn.Module:
    """Two auxiliary classifiers stand behind its last stage."""
    model: nn.Module = torchvision_googlenet(weights=None, init_weights=False)
    return model


class Plain(nn.Module):
    """Layers that nothing calls a backbone or a head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 10)


class OneLayer(nn.Module):
    """A backbone without stages."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10)


@pytest.mark.parametrize(
    ("build", "columns"),
    [
        (vit_b_32, ["overall", "backbone_layers_encoder_layer_11", "mlp_head"]),
        (convnext_tiny, ["overall", "backbone_7", "mlp_head"]),
        (googlenet, ["overall", "backbone_inception5b", "mlp_head"]),
        (OneLayer, ["overall", "backbone", "mlp_head"]),
        (resnet18, RESNET),
        (ava_resnet18, WITH_LAYERS),
        (Split, RESNET),
        (convnext, ["overall", "backbone_stages_3", "mlp_head"]),
        (vit, ["overall", "backbone_blocks_11", "mlp_head"]),
        (TinyNet, ["overall", "backbone_2", "mlp_head", "mlp_layer_0", "mlp_layer_3"]),
    ],
)
def test_groups_are_found(build: Callable[[], nn.Module], columns: list[str]) -> None:
    """The models people train need no configuration."""
    assert list(find_groups(build())) == columns


def test_roles_and_parents() -> None:
    """Rules go by a group's role and parent, not by its name."""
    groups = find_groups(ava_resnet18())
    assert {name: (group.role, group.parent) for name, group in groups.items()} == {
        "overall": ("overall", None),
        "backbone_layer4": ("backbone_last", "overall"),
        "mlp_head": ("head", "overall"),
        "mlp_layer_0": ("head_layer", "mlp_head"),
        "mlp_layer_3": ("head_layer", "mlp_head"),
    }
    assert partitions(groups) == {"mlp_head": ("mlp_layer_0", "mlp_layer_3")}


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of one, in memory."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_wrappers_are_seen_through(process_group: None) -> None:
    """Compiled and data-parallel models have the same columns and parameter names as the plain one."""
    plain = find_groups(ava_resnet18())
    compiled: Any = torch.compile(ava_resnet18())
    parallel = DistributedDataParallel(ava_resnet18())
    both: Any = torch.compile(parallel)
    inner = DistributedDataParallel(compiled)
    for model in (compiled, parallel, both, inner):
        assert find_groups(model) == plain


def test_chosen_groups() -> None:
    """A module, parameters, a glob, or several."""
    model = ava_resnet18()
    first = model.get_submodule("conv1")
    groups = find_groups(
        model, {"stem": first, "norms": ["*.bn1.*", "bn1.*"], "fc": "fc.*", "bias": [next(first.parameters())]}
    )
    assert groups["stem"].parameters == groups["bias"].parameters == ("conv1.weight",)
    assert "bn1.weight" in groups["norms"].parameters
    assert "layer1.0.bn1.weight" in groups["norms"].parameters
    assert len(groups["fc"].parameters) == 4
    assert next(iter(groups)) == "overall"


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("fv.*", "no parameter's name matches 'fv.*'"),
        ([], "Column 'mine' has no parameters"),
        (nn.ReLU(), "Column 'mine' has no parameters"),
        ([nn.Parameter(torch.zeros(2))], "not in the model"),
    ],
)
def test_a_group_of_nothing_is_refused(choice: object, sentence: str) -> None:
    """The message names the column."""
    with pytest.raises(GroupsError, match="mine") as caught:
        find_groups(ava_resnet18(), {"mine": choice})  # type: ignore[dict-item]  # wrong on purpose
    assert sentence in str(caught.value)


def test_a_column_name_that_csv_would_not_survive() -> None:
    """Commas, quotes, newlines and formulas are refused."""
    for name in ("a,b", 'a"b', "a\nb", "=1+1", ""):
        with pytest.raises(MisuseError, match="cannot name a column"):
            find_groups(ava_resnet18(), {name: "fc.*"})


def test_odd_names_of_a_models_own_children_become_column_names() -> None:
    """They are changed to valid ones, and two that become equal stay two columns."""
    model = nn.Module()
    model.backbone = nn.Sequential(OrderedDict([("größe 2,x", nn.Linear(4, 4))]))
    model.head = nn.Sequential(OrderedDict([("x y", nn.Linear(4, 4)), ("x,y", nn.Linear(4, 4))]))
    groups = find_groups(model)
    assert list(groups) == ["overall", "backbone_gr__e_2_x", "mlp_head", "mlp_layer_x_y", "mlp_layer_x_y_"]
    assert groups["mlp_layer_x_y_"].parameters == ("head.x,y.weight", "head.x,y.bias")


@pytest.mark.parametrize(
    "model",
    [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), Plain()],
    ids=["one", "sequential", "plain"],
)
def test_an_unknown_architecture_says_what_to_do(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """Only `overall` is left, no layer passes for a backbone: one warning shows how to name groups."""
    with caplog.at_level(logging.WARNING):
        found = find_groups(model)
        log_groups(model, found, is_found=True)
    assert list(found) == ["overall"]
    assert caplog.text.count("groups={'mlp_head'") == 1
