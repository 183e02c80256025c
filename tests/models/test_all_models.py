"""Every model of timm and torchvision has a head and a last stage, whatever it declares.

A fixed sample is tried, from every file of timm. With `AVA_ALL_MODELS=1`, as `make models` sets it, it is all models.
"""

import logging
import os
import warnings
from itertools import groupby

import pytest
import torch
from torch import nn
from torchvision.models import list_models

from ava_pipeline.collect.groups import find_groups
from tests.models import of_torchvision

timm = pytest.importorskip("timm")

IS_SAMPLE = not os.environ.get("AVA_ALL_MODELS")
OF_A_FILE = slice(None, None, 15 if IS_SAMPLE else 1)


def file_of(name: str) -> str:
    """The file of timm that builds a model."""
    module: str = timm.models.model_entrypoint(name).__module__
    return module


def names_of_timm() -> list[str]:
    """All names, or of every file the first and some more."""
    names = sorted(timm.list_models(), key=lambda name: (file_of(name), name))
    return [name for _, of_file in groupby(names, key=file_of) for name in [*of_file][OF_A_FILE]]


def assert_parts(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """Head and last stage are found, share no parameter, and no way of finding them failed."""
    with caplog.at_level(logging.INFO, logger="ava_pipeline"):
        groups = find_groups(model)
    by_role = {group.role: set(group.parameters) for group in groups.values()}
    assert by_role.keys() >= {"overall", "head", "backbone_last"}
    assert by_role["head"].isdisjoint(by_role["backbone_last"])
    assert not caplog.records


@pytest.mark.parametrize("name", names_of_timm())
def test_a_model_of_timm(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a head, which some are made without."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = timm.create_model(name, num_classes=10)
    assert_parts(model, caplog)


@pytest.mark.skipif(IS_SAMPLE, reason="the sample is in docs/models.md; AVA_ALL_MODELS=1 tries all")
@pytest.mark.parametrize("name", list_models())
def test_a_model_of_torchvision(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Classifiers of images and videos, detectors, segmenters, optical flow, quantized models."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = of_torchvision.build(name)
    assert_parts(model, caplog)
