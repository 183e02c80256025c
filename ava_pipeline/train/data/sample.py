"""Sample data in AVA's format: drawn images, with votes that depend on what is visible in them. Generated, not AVA.

Each image has five independent attributes, uniform in [0, 1]. Their weighted sum is its score, and votes are drawn
around it with the spread of AVA's votes; the constants below were fitted to 10,000 rows of AVA.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy.stats import norm

from ava_pipeline.contract.arrays import Floats, Integers
from ava_pipeline.contract.layout import PARTIAL_SUFFIX
from ava_pipeline.errors import ConfigError
from ava_pipeline.train.data.images import image_path

# Attribute -> weight in the score. Higher is better for each.
WEIGHTS = {"sharpness": 1.0, "contrast": 0.9, "saturation": 0.9, "cleanness": 0.9, "placement": 0.9}
_SCORE_MEAN, _SCORE_STD = 5.39, 0.72
# Votes: counts are log-normal; most voters are within about 1.2 points, and a few (a beta share) vote arbitrarily.
_VOTES_MEDIAN, _VOTES_LOG_STD, _VOTES_RANGE = 204.0, 0.285, (80, 549)
_SPREAD_MEDIAN, _SPREAD_LOG_STD = 1.18, 0.12
_OUTLIERS_BETA = (1.0, 13.0)
_NO_TAGS, _NO_SECOND_TAG = 0.227, 0.228
_NUM_TAGS, _NUM_CHALLENGES, _LARGEST_ID = 66, 1398, 958_297
_LEAST_IMAGE_SIZE = 32
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def write_sample_data(
    folder: str | Path,
    *,
    num_images: int,
    seed: int,
    image_size: int = 96,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `AVA.txt`, `images/<id>.jpg` and a `README.txt` that describes them; the same settings give the same data.

    The folder appears complete or not at all; a folder that already holds the data of the same settings is not changed.
    `image_size` is width and height in pixels; `on_progress` is called with the number of images done and the total.
    Raise ConfigError if the folder has other content, or a number is out of range.
    """
    folder = Path(folder)
    _refuse_numbers(num_images=num_images, seed=seed, image_size=image_size)
    readme = _readme(num_images=num_images, seed=seed, image_size=image_size)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _refuse_other_content(folder, readme, num_images)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", suffix=PARTIAL_SUFFIX, dir=folder.parent) as aside:
        data = Path(aside) / "data"
        _write(data, num_images=num_images, seed=seed, image_size=image_size, on_progress=on_progress)
        (data / "README.txt").write_text(readme, encoding="utf-8")
        data.replace(folder)


def _refuse_numbers(**given: int) -> None:
    for name, least in {"num_images": 1, "seed": 0, "image_size": _LEAST_IMAGE_SIZE}.items():
        if given[name] < least:
            raise ConfigError(f"Sample data: {name} is {given[name]}; give {least} or more.")


def _readme(*, num_images: int, seed: int, image_size: int) -> str:
    return (
        "Generated, not AVA. These images were drawn and their votes made up by ava_pipeline to try the training out;\n"
        "figures on them say nothing about photographs. AVA.txt has AVA's format.\n\n"
        f"num_images: {num_images}\nseed: {seed}\nimage_size: {image_size}\nversion: 1\n"
    )


def _refuse_other_content(folder: Path, readme: str, num_images: int) -> None:
    """Raise unless the folder holds exactly the data that would be written."""
    file = folder / "README.txt"
    same = file.is_file() and file.read_text(encoding="utf-8", errors="replace") == readme
    whole = (folder / "AVA.txt").is_file() and sum(1 for _ in (folder / "images").glob("*.jpg")) == num_images
    if not (same and whole):
        wanted = ", ".join(readme.splitlines()[-4:-1])
        raise ConfigError(
            f"{folder} holds {'only a part of the' if same else 'other files than the'} sample data of {wanted}. "
            "Nothing was changed: give another folder, or delete this one to have it written again."
        )


def _write(
    data: Path, *, num_images: int, seed: int, image_size: int, on_progress: Callable[[int, int], None] | None
) -> None:
    (data / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    attributes_of_all = rng.uniform(size=(num_images, len(WEIGHTS)))
    rows = _labels(rng, attributes_of_all)
    np.savetxt(data / "AVA.txt", rows, fmt="%d")
    for done, (image_id, attributes) in enumerate(zip(rows[:, 1].tolist(), attributes_of_all, strict=True), start=1):
        image = _draw(np.random.default_rng([seed, image_id]), attributes, image_size)
        image.save(image_path(data / "images", image_id), "JPEG", quality=92)
        if on_progress:
            on_progress(done, num_images)


def _labels(rng: np.random.Generator, attributes: Floats) -> Integers:
    """Return rows of AVA.txt, int64[N, 15], for attributes, float64[N, 5]."""
    num = len(attributes)
    ids = rng.choice(max(_LARGEST_ID, 2 * num), size=num, replace=False) + 1
    tags = rng.integers(1, _NUM_TAGS + 1, size=(num, 2))
    tags[rng.random(num) < _NO_SECOND_TAG, 1] = 0
    tags[rng.random(num) < _NO_TAGS] = 0
    challenges = rng.integers(1, _NUM_CHALLENGES + 1, size=num)
    return np.column_stack([np.arange(1, num + 1), ids, _votes(rng, _scores(attributes)), tags, challenges])


def _scores(attributes: Floats) -> Floats:
    """Return the expected score, float64[N]: the weighted sum of the attributes, scaled to AVA's mean and spread."""
    weights = np.array(list(WEIGHTS.values()))
    std = np.sqrt((weights**2).sum() / 12)  # the variance of a uniform number is 1/12
    scores: Floats = _SCORE_MEAN + _SCORE_STD * ((attributes - 0.5) @ weights) / std
    return scores


def _votes(rng: np.random.Generator, scores: Floats) -> Integers:
    """Draw vote counts, int64[N, 10]: a rounded normal around the score, mixed with a few arbitrary votes."""
    num = len(scores)
    counts = _VOTES_MEDIAN * np.exp(_VOTES_LOG_STD * rng.standard_normal(num))
    spread = _SPREAD_MEDIAN * np.exp(_SPREAD_LOG_STD * rng.standard_normal(num))
    outliers = rng.beta(*_OUTLIERS_BETA, size=num)
    centre = (scores - 5.5 * outliers) / (1 - outliers)  # so that the mixture has the score as its mean
    below = norm.cdf((np.arange(1.5, 10) - centre[:, None]) / spread[:, None])
    near = np.diff(below, axis=1, prepend=0.0, append=1.0)
    shares = (1 - outliers[:, None]) * near + outliers[:, None] / 10
    return rng.multinomial(counts.clip(*_VOTES_RANGE).astype(np.int64), shares)


def _draw(rng: np.random.Generator, attributes: Floats, size: int) -> Image.Image:
    """Draw a striped, two-coloured background with a bright disc, RGB, `size` by `size` pixels."""
    sharpness, contrast, saturation, cleanness, placement = attributes
    light, colour = _scene(rng, size, placement)
    pixels = 0.5 + (0.1 + 0.3 * contrast) * light[..., None] + (0.02 + 0.4 * saturation) * colour
    blur = ImageFilter.GaussianBlur(float(1 - sharpness) * size / 40)
    blurred = np.asarray(Image.fromarray(_to_bytes(pixels)).filter(blur)) / 255
    grain = (1 - cleanness) * 0.12 * rng.standard_normal((size, size, 1))
    return Image.fromarray(_to_bytes(blurred + grain))


def _scene(rng: np.random.Generator, size: int, placement: float) -> tuple[Floats, Floats]:
    """Return light, float64[S, S] in [-1, 1], and colour without light, float64[S, S, 3], of a random scene."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    stripes = np.sign(np.sin(2 * np.pi * rng.uniform(8, 11) * along + rng.uniform(0, 6)))
    # The disc is on a diagonal: at a crossing of the thirds if placement is 1, in the corner if it is 0.
    centre = (1 / 6 + (1 - placement) * 0.22) * rng.choice([-1, 1], size=2)
    disc = np.hypot(x - centre[0], y - centre[1]) < rng.uniform(0.11, 0.14)
    light = np.where(disc, 1.0, 0.45 * stripes - 0.3 + rng.uniform(-0.3, 0.3) * along)
    ground = np.where((along > 0)[..., None], _hue(rng), _hue(rng))
    return light, np.where(disc[..., None], _hue(rng), ground)


def _hue(rng: np.random.Generator) -> Floats:
    """Return a random colour without light, float64[3]: its channels differ by 1, its luminance is 0."""
    channels = rng.permutation(np.array([0.0, rng.random(), 1.0]))
    colour: Floats = channels - (channels * _LUMINANCE).sum()
    return colour


def _to_bytes(pixels: Floats) -> npt.NDArray[np.uint8]:
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)
