"""The parts of a model: whatever a model's own methods do, the collector is made, and columns are those expected."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import convnext_tiny, resnet18, resnet50, vgg16

from ava_pipeline import MisuseError, TelemetryCollector, open_run
from ava_pipeline.collect.groups import find_groups, log_groups
from ava_pipeline.contract.manifest import partitions
from tests.collect.models import TinyNet, backward, tiny
from tests.models.hand_written import Parts, gan, mlp, pipeline_chunks, without_last


class Declaring(TinyNet):
    """A model that declares its parts as timm's do."""

    def __init__(self, *, classifier: Any = None, feature_info: Any = None) -> None:
        super().__init__()
        self.declared = [classifier]  # in a list, so that a module in it is not a child
        self.feature_info = feature_info

    def get_classifier(self) -> Any:
        """Return what was given, or raise it."""
        if isinstance(self.declared[0], Exception):
            raise self.declared[0]
        return self.declared[0]


TINY = ["overall", "backbone_2", "mlp_head", "mlp_layer_0", "mlp_layer_3"]


@pytest.mark.parametrize(
    "feature_info",
    [
        [{"module": "act"}],
        [{"module": "backbone.1"}],
        [{"module": "mlp_head"}],
        [{"module": ""}],
        [{}],
        [None],
        [],
        "stages",
        7,
        {"module": "backbone"},
    ],
    ids=str,
)
def test_a_stage_that_is_declared_wrongly_is_found_otherwise(feature_info: Any) -> None:
    """`feature_info` may name a module that is missing, has no parameters or is the head, or be anything else."""
    assert list(find_groups(Declaring(feature_info=feature_info))) == TINY


@pytest.mark.parametrize(
    "classifier",
    [
        AttributeError("'Sequential' object has no attribute 'fc'"),
        RuntimeError("no"),
        RecursionError(),
        None,
        nn.Identity(),
        (),
        (nn.Identity(), nn.Identity()),
        [nn.Linear(2, 2)],
        nn.Linear(8, 10),
        nn.LayerNorm(8),
        "head",
    ],
    ids=str,
)
def test_a_head_that_is_declared_wrongly_is_found_by_its_name(classifier: Any) -> None:
    """`get_classifier` may raise, or return what is not a head, or not in the model."""
    assert list(find_groups(Declaring(classifier=classifier))) == TINY


def test_what_failed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the model, the way, the error and what follows."""
    with caplog.at_level(logging.INFO, logger="ava_pipeline"):
        find_groups(Declaring(classifier=AttributeError("no attribute 'fc'")))
    assert "Looking for the parts of Declaring by timm failed (AttributeError: no attribute 'fc'); the next way" in (
        caplog.text
    )


class Hostile(nn.Module):
    """Whatever is asked of it raises, except what every optimizer asks for too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    @property
    def get_classifier(self) -> Any:
        """Not to be had."""
        raise OSError("no")

    @property
    def feature_info(self) -> Any:
        """Not to be had."""
        raise KeyError("no")

    def named_children(self) -> Any:
        """Not to be had."""
        raise NotImplementedError


def test_a_model_that_fails_in_every_way_is_measured_as_a_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The constructor of a collector never costs a training: one warning shows how to name groups."""
    model = Hostile()
    optimizer = torch.optim.SGD(model.parameters())
    with caplog.at_level(logging.WARNING, logger="ava_pipeline"):
        TelemetryCollector(model, optimizer, tmp_path / "run").close()
    assert list(find_groups(model)) == ["overall"]
    assert [record.message.count("groups={'mlp_head'") for record in caplog.records] == [1]


def test_modules_that_contain_each_other_end() -> None:
    """A search without an end would be worse than an exception."""
    first, second = nn.Module(), nn.Module()
    first.other, second.other = second, first
    second.layer = nn.Linear(2, 2)
    assert list(find_groups(first)) == ["overall"]


def test_a_model_on_meta_has_a_collector(tmp_path: Path) -> None:
    """A model is often built without memory first."""
    with torch.device("meta"):
        model = Parts(backbone=resnet18(), head=mlp())
    with TelemetryCollector(model, torch.optim.SGD(model.parameters()), tmp_path / "run"):
        pass


def test_a_distilled_model_has_one_head() -> None:
    """Its classifier is a tuple."""
    model: Any = Parts(blocks=nn.Sequential(mlp(), mlp()), norm=nn.LayerNorm(10), head=nn.Linear(10, 5))
    model.head_dist = nn.Linear(10, 5)
    model.feature_info = [{"module": "blocks.0"}, {"module": "blocks.1"}]
    model.get_classifier = lambda: (model.head, model.head_dist)
    groups = find_groups(model)
    assert list(groups) == ["overall", "backbone_blocks_1", "mlp_head"]
    assert groups["mlp_head"].parameters == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")


@pytest.mark.parametrize(
    ("build", "columns"),
    [
        (lambda: without_last(resnet50(), nn.Flatten()), ["backbone_layer4"]),
        (lambda: nn.Sequential(*list(resnet18().children())[:-2]), ["backbone_layer4"]),
        (lambda: nn.Sequential(*list(resnet18().children())[:-3]), ["backbone_layer3"]),
        (lambda: without_last(convnext_tiny()), ["backbone_0_7"]),
        (vgg16, ["backbone_features_28"]),
    ],
    ids=["resnet50", "without pooling", "without layer4", "convnext", "with its classifier"],
)
def test_a_backbone_made_of_another_models_children(build: Callable[[], nn.Module], columns: list[str]) -> None:
    """The last stage is that of the other model, by its name where it is known."""
    with torch.device("meta"):
        groups = find_groups(Parts(backbone=build(), mlp_head=nn.Linear(512, 10)))
    assert list(groups) == ["overall", *columns, "mlp_head"]


def test_the_last_stage_of_a_resnet_without_names_is_its_last_stage() -> None:
    """The name is right only if the parameters are."""
    groups = find_groups(Parts(backbone=without_last(resnet18(), nn.Flatten()), mlp_head=mlp()))
    named = find_groups(Parts(backbone=Parts(**dict(resnet18().named_children())), mlp_head=mlp()))
    number_of = {name: len(group.parameters) for name, group in groups.items()}
    assert {name.split(".")[1] for name in groups["backbone_layer4"].parameters} == {"7"}
    assert number_of["backbone_layer4"] == len(named["backbone_layer4"].parameters) == 15


HEADS = (
    *("mlp", "out", "output", "regressor", "predictor", "score_head", "fc_out", "last_linear", "lm_head", "score"),
    *("decoder", "rpn", "roi_heads", "decode_head", "segmentation_head", "aux_classifier", "quality_head", "linear"),
)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_found_by_its_name(name: str) -> None:
    """Of a model whose backbone has any name."""
    model = Parts(body_of_mine=resnet18(), **{name: nn.Linear(1000, 10)})
    groups = find_groups(model)
    assert list(groups) == ["overall", "backbone_layer4", "mlp_head"]
    assert groups["mlp_head"].parameters == (f"{name}.weight", f"{name}.bias")


def test_several_heads_are_one_and_each() -> None:
    """`mlp_head` contains all, so that it partitions into them."""
    groups = find_groups(Parts(backbone=resnet18(), rpn=nn.Linear(9, 9), roi_heads=mlp()))
    assert list(groups) == ["overall", "backbone_layer4", "mlp_head", "mlp_head_rpn", "mlp_head_roi_heads"]
    assert partitions(groups) == {"mlp_head": ("mlp_head_rpn", "mlp_head_roi_heads")}
    assert {groups[name].role for name in ("mlp_head_rpn", "mlp_head_roi_heads")} == {"head_layer"}


def block(num_in: int, num_out: int) -> nn.Module:
    """A layer with norm and activation, as one module."""
    return nn.Sequential(nn.Linear(num_in, num_out), nn.BatchNorm1d(num_out), nn.ReLU())


@pytest.mark.parametrize(
    ("head", "layers"),
    [
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)), ["0", "2"]),
        (nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)), ["0", "1", "3"]),
        (nn.Sequential(block(8, 4), block(4, 4), nn.Linear(4, 1)), ["0", "1", "2"]),
        (Parts(net=nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))), ["0", "1"]),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 1)), []),
        (nn.Sequential(nn.Dropout(), nn.Linear(8, 1)), []),
        (nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)), []),
        (nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.Linear(8, 1)), []),
        (Parts(first=nn.Linear(8, 4), second=nn.Linear(4, 1)), []),
    ],
    ids=["mlp", "norm", "blocks", "inside", "norm and linear", "linear", "convolutions", "transformer", "no order"],
)
def test_only_an_mlp_has_layers(head: nn.Module, layers: list[str]) -> None:
    """An MLP is an `nn.Sequential` of at least two linear layers or blocks of them."""
    columns = list(find_groups(Parts(backbone=resnet18(), head=head)))
    assert columns == ["overall", "backbone_layer4", "mlp_head", *(f"mlp_layer_{index}" for index in layers)]


def encoder(num_blocks: int) -> nn.Module:
    """Blocks of attention and an MLP."""
    blocks = (Parts(attention=nn.MultiheadAttention(8, 2), mlp=mlp(), norm=nn.LayerNorm(8)) for _ in range(num_blocks))
    return Parts(layer=nn.ModuleList(blocks))


@pytest.mark.parametrize(
    ("backbone", "column"),
    [
        (Parts(layers=nn.ModuleList([mlp(), mlp()]), layernorm=nn.LayerNorm(9)), "backbone_layers_1"),
        (Parts(one=mlp(), two=mlp(), norm5=nn.BatchNorm2d(9), bn2=nn.BatchNorm2d(9)), "backbone_two"),
        (Parts(one=mlp(), two=mlp(), fpn=nn.Sequential(mlp(), mlp())), "backbone_two"),
        (Parts(embeddings=mlp(), encoder=encoder(1), pooler=mlp()), "backbone_encoder_layer_0"),
        (Parts(embeddings=mlp(), encoder=encoder(4), pooler=mlp()), "backbone_encoder_layer_3"),
        (Parts(stem=mlp(), trunk_output=nn.Sequential(*(mlp() for _ in range(30)))), "backbone_trunk_output_29"),
        (Parts(stages=nn.Sequential(nn.Sequential(mlp(), mlp()))), "backbone_stages_0_1"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4)), "backbone_2"),
        (Parts(model=Parts(body=nn.DataParallel(Parts(a=mlp(), b=mlp())))), "backbone_b"),
    ],
    ids=["layernorm", "norm5", "fpn", "one block", "transformer", "trunk", "one stage", "layers", "wrapped"],
)
def test_the_last_stage_of_a_backbone(backbone: nn.Module, column: str) -> None:
    """A norm, a pooling and an FPN are no stage, and a child that contains all stages is looked into."""
    assert list(find_groups(Parts(backbone=backbone, head=nn.Linear(9, 9)))) == ["overall", column, "mlp_head"]


def test_columns_of_the_same_parameters_are_one() -> None:
    """A model that is only a head has nothing else to measure."""
    groups = find_groups(Parts(head=nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))))
    assert list(groups) == ["overall", "mlp_layer_0", "mlp_layer_2"]


def test_the_users_names_have_roles() -> None:
    """A group called head, mlp or backbone is judged as one."""
    model = TinyNet()
    globs = {"head": "mlp_head.*", "mlp": "mlp_head.*", "classifier": "mlp_head.3.*", "backbone": "backbone.*"}
    groups = find_groups(model, globs | {"mlp_layer_0": "mlp_head.0.*", "stem": "backbone.0.*"})
    assert {name: group.role for name, group in groups.items()} == {
        "overall": "overall",
        "head": "head",
        "mlp": "head",
        "classifier": "head",
        "backbone": "backbone_last",
        "mlp_layer_0": "head_layer",
        "stem": "other",
    }


def norm(*modules: nn.Module) -> float:
    """The norm of all gradients, in float64."""
    gradients = [parameter.grad for module in modules for parameter in module.parameters()]
    return float(torch.cat([grad.double().flatten() for grad in gradients if grad is not None]).norm())


class TestSeveralModules:
    """A model may be a list of modules that are trained together."""

    def test_names_that_are_equal_begin_with_the_modules_index(self) -> None:
        """Both halves of a GAN have a `main.0`."""
        groups = find_groups(gan())
        assert list(groups) == ["overall", "module_0", "module_1"]
        assert groups["module_1"].parameters[0] == "1.main.0.weight"
        assert set(groups["overall"].parameters) == set(groups["module_0"].parameters + groups["module_1"].parameters)
        assert partitions(groups) == {"overall": ("module_0", "module_1")}

    def test_names_that_differ_stay_as_they_are(self) -> None:
        """The chunks of a pipeline have the names of the model that was cut."""
        groups = find_groups(pipeline_chunks())
        assert list(groups) == ["overall", "module_0", "module_1", "backbone_layer4", "mlp_head"]
        assert groups["mlp_head"].parameters == ("fc.weight", "fc.bias")
        assert groups["backbone_layer4"].parent == "module_1"

    def test_columns_that_are_equal_begin_with_the_modules_index(self) -> None:
        """Each keeps the role of its part."""
        groups = find_groups([TinyNet(), TinyNet()])
        assert [*groups][3:5] == ["module_0_backbone_2", "module_0_mlp_head"]
        assert groups["module_1_mlp_head"].role == "head"
        assert groups["module_1_mlp_layer_3"].parameters == ("1.mlp_head.3.weight", "1.mlp_head.3.bias")

    def test_a_parameter_that_two_modules_share_is_counted_once(self) -> None:
        """It belongs to both modules, and has one name."""
        shared = nn.Linear(3, 3)
        groups = find_groups([Parts(a=shared), Parts(b=shared, c=nn.Linear(3, 3))])
        assert groups["overall"].parameters == ("a.weight", "a.bias", "c.weight", "c.bias")
        assert list(groups) == ["overall", "module_0"]  # the second module is all there is

    def test_a_warning_names_all_modules(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing is known of a GAN's halves but what they are."""
        with caplog.at_level(logging.WARNING, logger="ava_pipeline"):
            log_groups(gan(), find_groups(gan()), is_found=True)
        assert "in Parts, Parts, so the only columns are 'overall', 'module_0', 'module_1'" in caplog.text

    def test_norms_are_those_of_each_module(self, tmp_path: Path) -> None:
        """In float64: of each module, of its parts, and of all."""
        modules = [tiny(0)[0], tiny(1)[0]]
        optimizer = torch.optim.SGD([parameter for module in modules for parameter in module.parameters()])
        for seed, module in enumerate(modules):
            backward(module, seed)
        with TelemetryCollector(modules, optimizer, tmp_path / "run", collect_every_n=1) as telemetry:
            telemetry.step()
        row = open_run(tmp_path / "run").gradient_norms().iloc[0]
        for index, module in enumerate(modules):
            assert row[f"module_{index}"] == pytest.approx(norm(module), rel=1e-6)
            assert row[f"module_{index}_mlp_head"] == pytest.approx(norm(module.mlp_head), rel=1e-6)
        assert row["overall"] == pytest.approx(norm(*modules), rel=1e-6)

    @pytest.mark.parametrize("model", [[], [TinyNet(), None], "model", None, [TinyNet().parameters()]], ids=range(5))
    def test_what_is_not_a_module_is_refused(self, model: Any, tmp_path: Path) -> None:
        """The message says what to give."""
        _, optimizer = tiny()
        with pytest.raises(MisuseError, match="that is being trained, or a list of modules"):
            TelemetryCollector(model, optimizer, tmp_path / "run")
