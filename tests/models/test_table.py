"""docs/models.md is true: each of its models has the columns that its row lists."""

import pytest

from tests.models.known import Known
from tests.models.table import DOC, SECTIONS

PAGE = DOC.read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and line != "| model | columns |"]
MODELS = [known for models in SECTIONS.values() for known in models]


@pytest.mark.parametrize("known", MODELS, ids=[known.name for known in MODELS])
def test_the_columns_of_a_model_are_those_of_its_row(known: Known) -> None:
    """The model is built anew; `python -m tests.models.table` writes the page."""
    if known.missing:
        pytest.skip(f"{', '.join(known.missing)} is not installed: pip install 'ava-pipeline[frameworks]'")
    assert known.row() in ROWS


def test_the_page_lists_these_models_and_no_others() -> None:
    """A row of a model that nobody builds anymore would not be checked."""
    assert [row.split(" | ")[0].removeprefix("| ") for row in ROWS] == [known.name for known in MODELS]
