"""From the config to training and validation images."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ava_pipeline.config.models import DataConfig, RunConfig, SampleConfig, SplitConfig
from ava_pipeline.contract.arrays import Floats, Integers
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.metrics import Metrics, constant_predictor
from ava_pipeline.train.data.dataset import AvaDataset, BatchLoader, make_loader
from ava_pipeline.train.data.images import ImageScan, scan_images, write_excluded
from ava_pipeline.train.data.labels import VOTE_COLUMNS, read_ava_labels
from ava_pipeline.train.data.sample import write_sample_data
from ava_pipeline.train.data.split import Split, listed_ids, split_by_hash, split_from_files
from ava_pipeline.train.display import Display
from ava_pipeline.train.run_dir import training_error_if_refused

_log = logging.getLogger("ava_pipeline")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainData:
    """The data of a run."""

    config: RunConfig
    labels: pd.DataFrame  # one row per image, including unused images
    scan: ImageScan  # which images are usable, and why the others are not
    split: Split  # disjoint ids of usable images
    train: AvaDataset  # augmented
    val: AvaDataset

    @property
    def num_batches(self) -> int:
        """Training batches per epoch; the images of an incomplete last batch are skipped in that epoch."""
        return len(self.train) // self.config.train.batch_size

    @property
    def num_val_batches(self) -> int:
        """Validation batches per epoch."""
        return len(self.val_batches())

    def train_batches(self, epoch: int, *, start_batch: int = 0) -> BatchLoader:
        """An epoch's batches, ordered by seed and epoch; raise ConfigError if the images do not fill a batch."""
        return make_loader(
            self.train,
            batch_size=self.config.train.batch_size,
            shuffle=True,
            seed=self.config.seed,
            epoch=epoch,
            num_workers=self.config.data.num_workers,
            start_batch=start_batch,
            drop_last=True,
        )

    def val_batches(self) -> BatchLoader:
        """The validation images, always in the same order."""
        return make_loader(
            self.val,
            batch_size=self.config.train.batch_size,
            shuffle=False,
            seed=self.config.seed,
            epoch=0,
            num_workers=self.config.data.num_workers,
        )

    def constant_predictor(self) -> Metrics:
        """Metrics of predicting the training images' mean distribution for every validation image."""
        val = self._votes(self.split.val)
        scores = val @ np.arange(1.0, len(VOTE_COLUMNS) + 1) / val.sum(axis=1)
        return constant_predictor(_shares(self._votes(self.split.train)), _shares(val), scores)

    def fingerprint(self) -> dict[str, Any]:
        """The properties of the data that must stay the same for a run to be resumed."""
        ids = np.ascontiguousarray(self.split.train, dtype="<i8").tobytes()
        return {
            "data.image_size": self.config.data.image_size,
            "training images": f"{len(self.split.train)} ids, SHA-256 {hashlib.sha256(ids).hexdigest()[:16]}",
        }

    def save(self, layout: RunLayout) -> None:
        """Write the split and the excluded images into the run; raise TrainingError if that fails."""
        with training_error_if_refused(layout.split):
            self.split.save(layout.split)
        with training_error_if_refused(layout.excluded_images):
            write_excluded(layout.excluded_images, self.scan)

    def _votes(self, image_ids: Integers) -> Integers:
        votes = self.labels.set_index("image_id").loc[image_ids, list(VOTE_COLUMNS)]
        return votes.to_numpy(dtype=np.int64)


def prepare_data(config: RunConfig, layout: RunLayout, display: Display, *, resume: bool) -> TrainData:
    """Read the labels, check every image that may be used, and split; with `resume`, use the run's saved split again.

    Raise ConfigError if a path is missing, and DataError if labels, images or split cannot be used, or images of the
    saved split are missing.
    """
    data = config.data
    if data.sample is not None:
        _generate(data.sample, data.labels.parent, display)
    labels = read_ava_labels(data.labels)
    begun = Split.load(layout.split) if resume and layout.split.exists() else None
    scan = _scan(data, _to_scan(data.split, labels, begun), display)
    if len(scan.excluded):
        _log.warning("%d images cannot be used and are excluded: see excluded_images.csv.", len(scan.excluded))
    split = _split(config, scan) if begun is None else begun
    if begun is not None:
        reasons = dict(zip(scan.excluded["image_id"], scan.excluded["reason"], strict=True))
        begun.check_usable(layout.split, scan.good_ids, reasons)
    return TrainData(
        config=config,
        labels=labels,
        scan=scan,
        split=split,
        train=_dataset(config, labels, split.train, augment=True),
        val=_dataset(config, labels, split.val, augment=False),
    )


def _generate(sample: SampleConfig, folder: Path, display: Display) -> None:
    with display.bar("generating images (not AVA)", total=sample.num_images) as bar:
        write_sample_data(
            folder,
            num_images=sample.num_images,
            seed=sample.seed,
            image_size=sample.image_size,
            on_progress=lambda done, _total: bar.update(done),
        )


def _to_scan(chosen: SplitConfig, labels: pd.DataFrame, begun: Split | None) -> Integers:
    """The images to check: those of the id lists and of the saved split; without lists, all that have labels."""
    image_ids = labels["image_id"].to_numpy()
    if not chosen.paths:
        return image_ids
    listed = [listed_ids(chosen.paths), *([] if begun is None else [begun.train, begun.val, begun.test])]
    return image_ids[np.isin(image_ids, np.concatenate(listed))]


def _scan(data: DataConfig, image_ids: Integers, display: Display) -> ImageScan:
    with display.bar("checking images", total=len(image_ids)) as bar:
        return scan_images(
            data.images,
            image_ids,
            cache_path=data.images.with_name(f"{data.images.name}.scan.parquet"),
            max_bad_fraction=data.max_bad_fraction,
            on_progress=lambda done, _total: bar.update(done),
        )


def _split(config: RunConfig, scan: ImageScan) -> Split:
    fractions = config.data.split.fractions
    if fractions is None:
        return split_from_files(config.data.split.paths, scan.good_ids)
    return split_by_hash(scan.good_ids, fractions=fractions, seed=config.seed)


def _dataset(config: RunConfig, labels: pd.DataFrame, ids: Integers, *, augment: bool) -> AvaDataset:
    size = config.data.image_size
    return AvaDataset(config.data.images, labels, ids, image_size=size, augment=augment, seed=config.seed)


def _shares(votes: Integers) -> Floats:
    return np.asarray(votes / votes.sum(axis=1, keepdims=True), dtype=np.float64)
