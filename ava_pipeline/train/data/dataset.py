"""Images and votes as tensors: the same ones for the same seed and epoch, however many workers load them."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ava_pipeline.contract.arrays import Integers
from ava_pipeline.errors import ConfigError, ImagesError, LabelsError
from ava_pipeline.train.data.images import image_path, open_rgb
from ava_pipeline.train.data.labels import VOTE_COLUMNS

Sample = tuple[int, Tensor, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]

# Of the images on which torchvision's weights were trained; https://docs.pytorch.org/vision/stable/models.html.
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
# Composition affects the score, so crops keep at least this fraction of width and height.
_LEAST_CROP = 0.9
_NUM_SHOWN = 5


class AvaDataset(Dataset[Sample]):
    """Items are `(image_id, image, votes)`: int; float32[3, S, S] with S = `image_size` pixels; int64[10].

    Images are normalised with ImageNet's mean and standard deviation. The whole image is resized to S by S. With
    `augment` it is cropped slightly and mirrored half the time; the random numbers depend only on seed, epoch and image
    id. `labels` is the frame that `read_ava_labels` returned; raise LabelsError if ids are missing in it.
    """

    def __init__(
        self,
        folder: str | Path,
        labels: pd.DataFrame,
        image_ids: npt.ArrayLike,
        *,
        image_size: int,
        augment: bool,
        seed: int,
    ) -> None:
        self.image_ids: Integers = np.asarray(image_ids, dtype=np.int64)
        self._votes = torch.from_numpy(_votes_of(labels, self.image_ids))
        self._folder = Path(folder)
        self._size = image_size
        self._augment = augment
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Augment as in this 0-based epoch. Existing loaders keep their epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        image_id = int(self.image_ids[index])
        image = open_rgb(image_path(self._folder, image_id))
        rng = np.random.default_rng([self._seed, self._epoch, image_id]) if self._augment else None
        return image_id, _normalised(_resized(image, self._size, rng)), self._votes[index]


def _votes_of(labels: pd.DataFrame, image_ids: Integers) -> Integers:
    """Return the votes for each id, int64[N, 10]."""
    rows: npt.NDArray[np.intp] = pd.Index(labels["image_id"]).get_indexer(pd.Index(image_ids))
    missing = image_ids[rows < 0]
    if len(missing):
        shown = ", ".join(map(str, missing[:_NUM_SHOWN]))
        raise LabelsError(
            f"{len(missing)} image ids have no labels, such as {shown}. Give only ids that the labels file contains."
        )
    votes: Integers = labels[list(VOTE_COLUMNS)].to_numpy(dtype=np.int64)[rows]
    return votes


def _resized(image: Image.Image, size: int, rng: np.random.Generator | None) -> Image.Image:
    """Resize the whole image, or, given random numbers, a slight crop of it that is mirrored half the time."""
    if rng is None:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    width, height = np.array(image.size) * rng.uniform(_LEAST_CROP, 1)
    left, top = rng.uniform(size=2) * (np.array(image.size) - (width, height))
    box = (float(left), float(top), float(left + width), float(top + height))
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop  # noqa: PLR2004  # a half


def _normalised(image: Image.Image) -> Tensor:
    """Return float32[3, H, W]."""
    pixels = (np.asarray(image, dtype=np.float32) / 255 - _IMAGENET_MEAN) / _IMAGENET_STD
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class _AtEpoch(Dataset[Sample | ImagesError]):
    """The dataset fixed to one epoch, with errors as items."""

    def __init__(self, dataset: AvaDataset, epoch: int) -> None:
        self._dataset = copy(dataset)
        self._dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample | ImagesError:
        try:
            return self._dataset[index]
        except ImagesError as error:
            return error  # raised in a worker process, it would reach the user inside that worker's traceback


def _collated(samples: list[Sample | ImagesError]) -> Batch | ImagesError:
    """Stack samples into a batch, or return the first error among them."""
    errors = [sample for sample in samples if isinstance(sample, ImagesError)]
    with torch.device("cpu"):  # named, because another default device may be set
        return errors[0] if errors else tuple(default_collate(samples))


@dataclass(frozen=True, eq=False)
class BatchLoader:
    """One epoch's batches, `(image_ids int64[B], images float32[B, 3, S, S], votes int64[B, 10])`."""

    _loader: DataLoader[Sample | ImagesError]

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        with torch.device("cpu"):  # else torch draws the workers' seeds on the default device
            batches = iter(self._loader)
        for batch in batches:
            if isinstance(batch, ImagesError):
                raise batch  # an image has become unreadable since it was scanned
            yield batch


def make_loader(  # noqa: PLR0913  # each is a setting of the epoch, given by name
    dataset: AvaDataset,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    epoch: int,
    num_workers: int,
    start_batch: int = 0,
    drop_last: bool = False,
) -> BatchLoader:
    """Return one epoch's batches. Make a new loader each epoch: its workers then know the epoch.

    Order and augmentation depend only on seed and epoch; torch's generators are neither used nor advanced. Skip
    `start_batch` batches without decoding, as after a resume, and with `drop_last` a last batch that is not full. Raise
    ConfigError if there are fewer images than one batch, or `start_batch` is beyond the last batch of the epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(dataset)) if shuffle else np.arange(len(dataset))
    num_batches = len(order) // batch_size if drop_last else ceil(len(order) / batch_size)
    _refuse_none(len(order), batch_size, num_batches=num_batches, start_batch=start_batch)
    batches = [order[n * batch_size : (n + 1) * batch_size].tolist() for n in range(start_batch, num_batches)]
    loader = DataLoader(
        _AtEpoch(dataset, epoch),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collated,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    return BatchLoader(loader)


def _refuse_none(num_images: int, batch_size: int, *, num_batches: int, start_batch: int) -> None:
    if num_batches == 0:
        raise ConfigError(
            f"A batch of {batch_size} is larger than the set of {num_images} images, so no batch is full. Give a "
            f"batch size of at most {num_images}, or more images."
        )
    if not 0 <= start_batch <= num_batches:
        raise ConfigError(
            f"The epoch has {num_batches} batches and cannot start at batch {start_batch}. Resume with the images, "
            "split and batch size that the run had, or start over."
        )
