"""Write the tables of docs/models.md: `python -m tests.models.table`. Needs every library that they name."""

from pathlib import Path

from tests.models import hand_written, of_timm, of_torchvision, of_transformers
from tests.models.known import Known

DOC = Path(__file__).parents[2] / "docs" / "models.md"

SECTIONS: dict[str, tuple[Known, ...]] = {
    "torchvision": of_torchvision.MODELS,
    "timm": of_timm.MODELS,
    "transformers": of_transformers.MODELS,
    "Models of your own": hand_written.MODELS,
}


def table(title: str, models: tuple[Known, ...]) -> str:
    """The table of one section, under its heading."""
    return f"## {title}\n\n| model | columns |\n|---|---|\n" + "".join(f"{known.row()}\n" for known in models)


if __name__ == "__main__":
    introduction = DOC.read_text(encoding="utf-8").split("## ")[0]
    tables = [table(title, models) for title, models in SECTIONS.items()]
    DOC.write_text(introduction + "\n".join(tables), encoding="utf-8")
