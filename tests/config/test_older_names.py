"""The settings of older training code, by their names here."""

from pydantic import BaseModel

from ava_pipeline.config.models import RunConfig
from ava_pipeline.config.older_names import older_name_sentence


class Train(BaseModel):
    """A block with a loss."""

    loss: str = "emd"


class Config(BaseModel):
    """A config whose training block has a loss."""

    train: Train = Train()


def test_a_setting_is_named_only_if_the_config_has_it() -> None:
    """`loss_type` is `train.loss` where that exists; a name that leads nowhere is not given."""
    assert older_name_sentence("loss_type", "kl_div", Config) == "unknown key; loss_type is train.loss here"
    assert older_name_sentence("max_epochs", 3, Config) is None
    assert older_name_sentence("training", {"max_epochs": 3}, Config) is None


def test_blocks_in_blocks_are_searched() -> None:
    """Each key of a block that is called otherwise here is named, however deep."""
    sentence = older_name_sentence("training", {"optim": {"max_epochs": 3}, "other": 1}, RunConfig)
    assert sentence == "unknown block; its keys have other places here: max_epochs is train.epochs here"
