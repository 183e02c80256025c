"""Sample data: its format, the similarity of its votes to AVA's, and images that explain their scores."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from ava_pipeline.errors import ConfigError
from ava_pipeline.train.data.images import open_rgb, scan_images
from ava_pipeline.train.data.labels import VOTE_COLUMNS, read_ava_labels
from ava_pipeline.train.data.sample import write_sample_data

REAL_ROWS = Path(__file__).parents[3].parent / "shared" / "ava" / "AVA_10000_rows.txt"
NUM_IMAGES = 1000
FloatArray = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sample data, about as much as the demo has."""
    folder = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(folder, num_images=NUM_IMAGES, seed=0)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file by its name in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_read_by_the_loaders_of_the_real_data(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fifteen integers a row, an image for every id, ids that differ from the running index, no warning."""
    labels = read_ava_labels(data / "AVA.txt")
    scan = scan_images(data / "images", labels["image_id"], cache_path=data.parent / "cache", max_bad_fraction=0)
    assert len(scan.good_ids) == NUM_IMAGES
    assert (labels["image_id"] != np.arange(1, NUM_IMAGES + 1)).mean() > 0.99
    assert {len(line.split()) for line in (data / "AVA.txt").read_text().splitlines()} == {15}
    assert not caplog.records


def test_it_says_that_it_is_not_ava(data: Path) -> None:
    """A user who finds the folder must not take its metrics for AVA's."""
    assert (data / "README.txt").read_text().startswith("Generated, not AVA.")


def vote_figures(labels: pd.DataFrame) -> dict[str, FloatArray]:
    """Return the arrays that are compared with AVA's, by name."""
    votes = labels[list(VOTE_COLUMNS)].to_numpy()
    num, scores = votes.sum(axis=1), np.arange(1, 11)
    spread = np.sqrt(votes @ scores**2 / num - (votes @ scores / num) ** 2)
    return {
        "counts": np.quantile(num, [0.05, 0.25, 0.5, 0.75, 0.95]) / 200,
        "means": np.array([labels["gt_mean"].mean(), labels["gt_mean"].std()]),
        "spreads": np.quantile(spread, [0.05, 0.5, 0.95]),
        "empty bins": (votes == 0).mean(axis=0),
        "tags": np.array([(labels["tag_1"] == 0).mean(), (labels["tag_2"] == 0).mean()]),
    }


# From 10,000 of AVA's rows; rounded.
AVA_FIGURES = {
    "counts": np.array([129, 165, 202, 247, 316]) / 200,
    "means": np.array([5.37, 0.73]),
    "spreads": np.array([1.11, 1.42, 1.78]),
    "empty bins": np.array([0.363, 0.145, 0.021, 0, 0, 0, 0.003, 0.028, 0.137, 0.246]),
    "tags": np.array([0.227, 0.403]),
}


@pytest.mark.parametrize("figure", AVA_FIGURES)
def test_votes_are_spread_as_in_ava(data: Path, figure: str) -> None:
    """Counts, means, spreads, empty outer bins and missing tags, to a tenth (of a point, a share, 200 votes)."""
    labels = read_ava_labels(data / "AVA.txt")
    np.testing.assert_allclose(vote_figures(labels)[figure], AVA_FIGURES[figure], atol=0.11)
    assert labels[list(VOTE_COLUMNS)].sum(axis=1).between(80, 549).all()


def test_the_figures_compared_to_are_those_of_real_rows() -> None:
    """The constants above, recomputed."""
    if not REAL_ROWS.exists():
        pytest.skip(f"{REAL_ROWS} is absent: AVA's rows are not redistributed with the project")
    figures = vote_figures(read_ava_labels(REAL_ROWS))
    for name, expected in AVA_FIGURES.items():
        np.testing.assert_allclose(figures[name], expected, atol=0.01, err_msg=name)


def measured(path: Path) -> list[float]:
    """Measure in the pixels the trace of each attribute: sharpness, contrast, saturation, cleanness, placement."""
    with Image.open(path) as image:
        grey, pixels = image.convert("L"), np.asarray(image) / 255
    light, fine, coarse = (
        np.asarray(grey.filter(ImageFilter.GaussianBlur(radius))) / 255 for radius in (0.0, 1.0, len(pixels) / 32)
    )
    laplacian = 4 * light[1:-1, 1:-1] - light[:-2, 1:-1] - light[2:, 1:-1] - light[1:-1, :-2] - light[1:-1, 2:]
    saturation = (pixels.max(axis=2) - pixels.min(axis=2)).mean()
    subject = np.argwhere(coarse >= np.quantile(coarse, 0.97)).mean(axis=0) / len(pixels)
    return [
        float(np.log(fine.std() / coarse.std())),
        float(coarse.std()),
        float(saturation),
        -float(np.median(np.abs(laplacian))),
        -float(np.hypot(*(subject - 0.5))),
    ]


def test_every_attribute_shows_in_the_pixels_and_counts_in_the_score(data: Path) -> None:
    """A linear regression on five measurements of the JPEGs explains the scores, and needs each of the five."""
    labels = read_ava_labels(data / "AVA.txt")
    figures = np.array([measured(data / "images" / f"{image_id}.jpg") for image_id in labels["image_id"]])
    figures = (figures - figures.mean(axis=0)) / figures.std(axis=0)
    target = (labels["gt_mean"] - labels["gt_mean"].mean()).to_numpy()
    weights, *_ = np.linalg.lstsq(figures, target)
    explained = 1 - (target - figures @ weights).var() / target.var()
    assert explained > 0.75
    for left_out in range(figures.shape[1]):
        rest = np.delete(figures, left_out, axis=1)
        without = 1 - (target - rest @ np.linalg.lstsq(rest, target)[0]).var() / target.var()
        assert explained - without > 0.05, left_out
    assert (weights > 0).all()


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    """In every file, labels and images alike."""
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        write_sample_data(tmp_path / name, num_images=5, seed=seed, image_size=32)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys().isdisjoint(set(contents(tmp_path / "c")) - {"AVA.txt", "README.txt"})


def test_image_size_and_number_are_those_asked_for(tmp_path: Path) -> None:
    """Progress counts every image up to the number."""
    steps: list[tuple[int, int]] = []
    write_sample_data(tmp_path, num_images=3, seed=0, image_size=40, on_progress=lambda *step: steps.append(step))
    sizes = [open_rgb(path).size for path in jpegs(tmp_path / "images")]
    assert sizes == [(40, 40)] * 3
    assert steps == [(1, 3), (2, 3), (3, 3)]


def jpegs(folder: Path) -> Iterator[Path]:
    """Return the JPEGs of the folder."""
    return folder.glob("*.jpg")


def test_a_whole_folder_is_reused(tmp_path: Path) -> None:
    """A second call with the same settings changes nothing."""
    write_sample_data(tmp_path / "data", num_images=3, seed=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_sample_data(tmp_path / "data", num_images=3, seed=0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("change", ["settings", "image", "labels", "foreign", "file"])
def test_other_content_is_refused_and_left_alone(tmp_path: Path, change: str) -> None:
    """Other settings, a missing image or AVA.txt, a user's own folder, a file: an error that says what to do."""
    folder = tmp_path / "data"
    if change == "foreign":
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    elif change == "file":
        folder.write_text("mine")
    else:
        write_sample_data(folder, num_images=3, seed=1 if change == "settings" else 0)
    if change == "image":
        next(jpegs(folder / "images")).unlink()
    if change == "labels":
        (folder / "AVA.txt").unlink()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="give another folder, or delete this one"):
        write_sample_data(folder, num_images=3, seed=0)
    assert contents(tmp_path) == before


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    """A partial data set under the final name would be used for training."""

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "data", num_images=3, seed=0, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("num_images", 0), ("seed", -1), ("image_size", 8)])
def test_numbers_out_of_range_say_what_to_give(tmp_path: Path, name: str, value: int) -> None:
    """Before anything is written."""
    given = {"num_images": 1, "seed": 0, "image_size": 32} | {name: value}
    with pytest.raises(ConfigError, match=f"{name} is {value}; give "):
        write_sample_data(tmp_path / "data", **given)  # type: ignore[arg-type]  # on_progress is not among them
