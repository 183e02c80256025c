"""The dataset and its batches: correct tensors that do not depend on workers, order or resume."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ava_pipeline.errors import ConfigError, ImagesError, LabelsError
from ava_pipeline.train.data.dataset import AvaDataset, BatchLoader, make_loader
from ava_pipeline.train.data.labels import VOTE_COLUMNS, read_ava_labels
from ava_pipeline.train.data.sample import write_sample_data

NUM_IMAGES = 22
Sets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sample data, which tests do not change."""
    folder = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(folder, num_images=NUM_IMAGES, seed=0, image_size=48)
    return folder


@pytest.fixture(scope="module")
def labels(folder: Path) -> pd.DataFrame:
    """Return the labels of the sample data."""
    return read_ava_labels(folder / "AVA.txt")


def dataset(folder: Path, labels: pd.DataFrame, *, augment: bool = True, seed: int = 0) -> AvaDataset:
    """Return the whole sample data at 32 pixels."""
    return AvaDataset(folder / "images", labels, labels["image_id"], image_size=32, augment=augment, seed=seed)


def loader(items: AvaDataset, *, epoch: int = 0, num_workers: int = 0, start_batch: int = 0) -> BatchLoader:
    """Return a loader of shuffled batches of four."""
    return make_loader(
        items, batch_size=4, shuffle=True, seed=0, epoch=epoch, num_workers=num_workers, start_batch=start_batch
    )


def same(one: Sets, other: Sets) -> bool:
    """Whether ids, images and votes are equal to the bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_items_hold_the_image_and_votes_of_their_id(folder: Path, labels: pd.DataFrame) -> None:
    """Votes are looked up by id, whatever the order of the ids."""
    ids = labels["image_id"].to_numpy()[[5, 2, 9]]
    items = AvaDataset(folder / "images", labels, ids, image_size=48, augment=False, seed=0)
    image_id, image, votes = items[1]
    assert (len(items), image_id) == (3, labels.loc[2, "image_id"])
    assert votes.dtype == torch.int64
    assert votes.tolist() == labels[list(VOTE_COLUMNS)].to_numpy()[2].tolist()
    assert image.dtype == torch.float32
    with Image.open(folder / "images" / f"{image_id}.jpg") as stored:
        pixels = torch.from_numpy(np.array(stored)).permute(2, 0, 1) / 255
    restored = image * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor([0.485, 0.456, 0.406]).view(
        3, 1, 1
    )
    torch.testing.assert_close(restored, pixels)


def test_validation_sees_the_whole_image(tmp_path: Path) -> None:
    """A wide image is resized, not cropped: its red left and blue right edges are there in every epoch."""
    image = Image.new("RGB", (200, 50), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 50))
    image.save(tmp_path / "7.jpg", quality=95)
    labels = pd.DataFrame({"image_id": [7], **dict.fromkeys(VOTE_COLUMNS, 1)})
    items = AvaDataset(tmp_path, labels, [7], image_size=32, augment=False, seed=0)
    first = items[0][1]
    assert first.shape == (3, 32, 32)
    assert (first[0, :, :14] > 2).all()
    assert (first[2, :, 18:] > 2).all()
    items.set_epoch(5)
    assert torch.equal(items[0][1], first)


def test_augmentation_depends_on_seed_epoch_and_id_alone(folder: Path, labels: pd.DataFrame) -> None:
    """Each of them changes the image; a second call, other images beside it, or seeding torch do not."""
    items = dataset(folder, labels)
    first = items[3][1]
    torch.manual_seed(1)
    turned = AvaDataset(folder / "images", labels, labels["image_id"][::-1], image_size=32, augment=True, seed=0)
    assert torch.equal(items[3][1], first)
    assert torch.equal(turned[NUM_IMAGES - 1 - 3][1], first)
    assert not torch.equal(dataset(folder, labels, seed=1)[3][1], first)
    items.set_epoch(1)
    assert not torch.equal(items[3][1], first)


def test_each_image_is_augmented_by_itself(folder: Path, labels: pd.DataFrame, tmp_path: Path) -> None:
    """The same picture differs under nearly every id."""
    picture = next((folder / "images").iterdir()).read_bytes()
    for image_id in labels["image_id"]:
        (tmp_path / f"{image_id}.jpg").write_bytes(picture)
    items = AvaDataset(tmp_path, labels, labels["image_id"], image_size=32, augment=True, seed=0)
    assert len({items[index][1].numpy().tobytes() for index in range(NUM_IMAGES)}) > NUM_IMAGES // 2


def test_augmentation_keeps_the_composition(tmp_path: Path) -> None:
    """Over many epochs the subject stays in place, but is mirrored about half the time."""
    image = Image.new("RGB", (100, 100))
    image.paste((255, 255, 255), (15, 40, 35, 60))
    image.save(tmp_path / "7.jpg", quality=95)
    labels = pd.DataFrame({"image_id": [7], **dict.fromkeys(VOTE_COLUMNS, 1)})
    items = AvaDataset(tmp_path, labels, [7], image_size=50, augment=True, seed=0)
    centres = []
    for epoch in range(60):
        items.set_epoch(epoch)
        centres.append(torch.nonzero(items[0][1][0] > 0).float().mean(dim=0) / 50)
    down, across = torch.stack(centres).T
    assert ((down > 0.4) & (down < 0.6)).all()
    assert ((across < 0.35) | (across > 0.65)).all()
    assert 15 <= int((across > 0.5).sum()) <= 45
    assert len({round(float(place), 4) for place in down}) > 10


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(folder: Path, labels: pd.DataFrame, num_workers: int) -> None:
    """Batches equal those loaded in this process, to the bit; also in a later epoch, which workers must know of."""
    items = dataset(folder, labels)
    here = list(loader(items, epoch=2))
    there = list(loader(items, epoch=2, num_workers=num_workers))
    assert len(here) == len(there) == 6
    assert all(map(same, here, there))


def test_epochs_differ_in_order_and_cover_every_image(folder: Path, labels: pd.DataFrame) -> None:
    """Each epoch has each image once."""
    items = dataset(folder, labels)
    orders = [torch.cat([ids for ids, _, _ in loader(items, epoch=epoch)]) for epoch in (0, 1)]
    assert not torch.equal(*orders)
    assert all(sorted(order.tolist()) == sorted(labels["image_id"]) for order in orders)


def test_a_loader_keeps_its_epoch(folder: Path, labels: pd.DataFrame) -> None:
    """Setting another epoch on the dataset, or making the next epoch's loader, does not change it."""
    items = dataset(folder, labels)
    batches = loader(items, epoch=1)
    expected = list(loader(items, epoch=1))
    items.set_epoch(9)
    assert all(map(same, batches, expected))


def test_an_epoch_continues_in_the_middle_without_decoding_what_went_before(
    folder: Path, labels: pd.DataFrame, tmp_path: Path
) -> None:
    """The skipped images do not even exist; the rest is the same to the bit."""
    whole = list(loader(dataset(folder, labels), epoch=1))
    (tmp_path / "images").mkdir()
    for image_id in torch.cat([ids for ids, _, _ in whole[4:]]).tolist():
        name = f"images/{image_id}.jpg"
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    rest = loader(dataset(tmp_path, labels), epoch=1, start_batch=4)
    assert len(rest) == 2
    assert all(map(same, rest, whole[4:]))
    assert list(loader(dataset(folder, labels), start_batch=6)) == []


def test_torch_random_numbers_are_left_alone(folder: Path, labels: pd.DataFrame) -> None:
    """Otherwise dropout after a resume within an epoch would differ from an uninterrupted run."""
    state = torch.get_rng_state()
    list(loader(dataset(folder, labels)))
    list(loader(dataset(folder, labels), num_workers=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_on_the_host_whatever_the_default_device(
    folder: Path, labels: pd.DataFrame, num_workers: int
) -> None:
    """They are moved to the training device when they are used."""
    items = dataset(folder, labels)
    with torch.device("meta"):
        found = list(loader(items, num_workers=num_workers))
    assert all(same(one, other) for one, other in zip(found, loader(items), strict=True))


def test_validation_keeps_the_order_and_the_last_batch(folder: Path, labels: pd.DataFrame) -> None:
    """Unshuffled, 22 images in batches of 8 give 8, 8 and 6; `drop_last` drops the 6."""
    items = dataset(folder, labels, augment=False)
    batches = make_loader(items, batch_size=8, shuffle=False, seed=0, epoch=3, num_workers=0, drop_last=False)
    ids = [ids.tolist() for ids, _, _ in batches]
    assert [len(some) for some in ids] == [8, 8, 6]
    assert sum(ids, []) == labels["image_id"].to_list()  # noqa: RUF017  # three short lists
    assert len(make_loader(items, batch_size=8, shuffle=False, seed=0, epoch=3, num_workers=0, drop_last=True)) == 2


def test_batches_are_typed_and_shaped_as_promised(folder: Path, labels: pd.DataFrame) -> None:
    """Ids and votes are int64, images float32."""
    ids, images, votes = next(iter(loader(dataset(folder, labels))))
    assert (ids.dtype, images.dtype, votes.dtype) == (torch.int64, torch.float32, torch.int64)
    assert (ids.shape, images.shape, votes.shape) == ((4,), (4, 3, 32, 32), (4, 10))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_lost_since_the_scan_is_named(
    folder: Path, labels: pd.DataFrame, tmp_path: Path, num_workers: int
) -> None:
    """One sentence without the worker's traceback; no other image replaces it."""
    with pytest.raises(ImagesError) as caught:
        list(loader(dataset(tmp_path, labels), num_workers=num_workers))
    assert "missing. Restore the file" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_ids_without_labels_are_refused(folder: Path, labels: pd.DataFrame) -> None:
    """Before the first batch; the message names the first of them."""
    with pytest.raises(LabelsError, match="2 image ids have no labels, such as -1, -2"):
        AvaDataset(folder, labels, np.array([*labels["image_id"], -1, -2]), image_size=32, augment=False, seed=0)


def test_a_batch_larger_than_the_set_says_what_to_give(folder: Path, labels: pd.DataFrame) -> None:
    """With `drop_last` no batch would remain; without it, one small batch is valid."""
    items = dataset(folder, labels)
    with pytest.raises(ConfigError, match="batch of 23 is larger than the set of 22 images"):
        make_loader(items, batch_size=23, shuffle=True, seed=0, epoch=0, num_workers=0, drop_last=True)
    assert len(make_loader(items, batch_size=23, shuffle=True, seed=0, epoch=0, num_workers=0, drop_last=False)) == 1


@pytest.mark.parametrize("start_batch", [-1, 7])
def test_a_start_outside_the_epoch_is_refused(folder: Path, labels: pd.DataFrame, start_batch: int) -> None:
    """As after a resume with another batch size."""
    with pytest.raises(ConfigError, match=f"has 6 batches and cannot start at batch {start_batch}"):
        loader(dataset(folder, labels), start_batch=start_batch)
