"""Scanning and opening images: real files of every format, valid and invalid."""

import logging
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile

from ava_pipeline.errors import ConfigError, ImagesError
from ava_pipeline.train.data import images
from ava_pipeline.train.data.images import ImageScan, open_rgb, scan_images, write_excluded

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def quarters(size: int = 64) -> Image.Image:
    """Return an image whose corners are, clockwise, red, green, blue and white, so that each rotation differs."""
    image = Image.new("RGB", (size, size), RED)
    image.paste(GREEN, (size // 2, 0, size, size // 2))
    image.paste(BLUE, (size // 2, size // 2, size, size))
    image.paste(WHITE, (0, size // 2, size // 2, size))
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return the image as the bytes of a file."""
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Return the colours of the corners, clockwise from the top left, each channel rounded to 0 or 255."""
    pixels = np.where(np.asarray(image) > 127, 255, 0)
    size = len(pixels)
    low, high = size // 4, size - size // 4
    return [tuple(pixels[y, x].tolist()) for y, x in ((low, low), (low, high), (high, high), (high, low))]


def exif(orientation: int) -> bytes:
    """Return an EXIF block with the orientation of the stored image."""
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block.tobytes()


STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
GREY = {"1", "L", "LA"}
KINDS: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: encoded(quarters()),
    "progressive": lambda: encoded(quarters(), progressive=True),
    "cmyk": lambda: encoded(quarters().convert("CMYK")),
    "palette-png": lambda: encoded(quarters().convert("P"), "PNG"),
    "palette-png-transparent": lambda: encoded(quarters().convert("P"), "PNG", transparency=b"\xff" * 256),
    "gif": lambda: encoded(quarters(), "GIF"),
    "rgba-png": lambda: encoded(quarters().convert("RGBA"), "PNG"),
    "mpo": lambda: encoded(quarters(), "MPO", quality=95, save_all=True, append_images=[quarters(8)]),
    "bmp": lambda: encoded(quarters(), "BMP"),
    "broken-exif": lambda: encoded(quarters(), exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0broken"),
    **{f"exif-{n}": lambda n=n: stored(n) for n in STORED_AS},  # type: ignore[misc]  # mypy cannot type a bound default
}


def stored(orientation: int) -> bytes:
    """Return a JPEG as a camera held that way writes it."""
    turn = STORED_AS[orientation]
    return encoded(quarters() if turn is None else quarters().transpose(turn), exif=exif(orientation))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_opens_upright_in_its_colours(tmp_path: Path, kind: str) -> None:
    """In every encoding the corners keep their place and colour."""
    path = tmp_path / "1.jpg"
    path.write_bytes(KINDS[kind]())
    image = open_rgb(path)
    assert image.mode == "RGB"
    assert corners(image) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_greyscale_becomes_rgb_of_the_same_brightness(tmp_path: Path, mode: str) -> None:
    """Black and white stay black and white in three channels."""
    path = tmp_path / "1.jpg"
    path.write_bytes(encoded(quarters().convert("L").point(lambda v: 255 * (v > 200)).convert(mode), "PNG"))
    image = open_rgb(path)
    assert image.mode == "RGB"
    assert corners(image) == [(0, 0, 0), (0, 0, 0), (0, 0, 0), WHITE]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    """Transparent pixels do not show the colour that is stored below."""
    hidden = quarters().convert("RGBA")
    hidden.putalpha(Image.new("L", hidden.size, 0))
    palette = quarters().convert("P")
    for name, data in {
        "1.jpg": encoded(hidden, "PNG"),
        "2.jpg": encoded(palette, "PNG", transparency=b"\0" * 256),
        "3.jpg": encoded(Image.new("RGB", (64, 64), RED), "PNG", transparency=RED),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert corners(open_rgb(tmp_path / name)) == [WHITE] * 4, name


WHOLE = encoded(quarters(256), exif=exif(1))
WHOLE_PROGRESSIVE = encoded(quarters(256), progressive=True)
BAD = {
    "empty": (b"", "empty file"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "one-byte": (b"\xff", "not an image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EOF\n", "not an image"),
    "cut-in-header": (WHOLE[:30], ""),
    "cut-at-half": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "cut-near-end": (WHOLE[:-20], "truncated"),
    "cut-by-two": (WHOLE[:-2], "truncated"),
    "cut-progressive": (WHOLE_PROGRESSIVE[: len(WHOLE_PROGRESSIVE) * 3 // 4], "truncated"),
    "cut-png": (encoded(quarters(), "PNG")[:-40], ""),
    "sixteen-bit": (encoded(Image.new("I;16", (4, 4), 9), "PNG"), "expected an 8-bit image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_left_out_with_their_reason(tmp_path: Path, kind: str) -> None:
    """No image replaces them: the list has them, and opening one raises an error with its path and the reason."""
    data, reason = BAD[kind]
    write(tmp_path, {1: encoded(quarters()), 2: data})
    found = scan(tmp_path, [1, 2], max_bad_fraction=0.5)
    assert found.good_ids.tolist() == [1]
    assert found.excluded[["image_id", "file"]].to_numpy().tolist() == [[2, "2.jpg"]]
    assert reason in str(found.excluded.loc[0, "reason"])
    with pytest.raises(ImagesError, match=r"2\.jpg: .+ Restore the file"):
        open_rgb(tmp_path / "2.jpg")


@pytest.mark.parametrize("limit", [2000, 4000])
def test_decompression_bombs_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Pillow warns or refuses: 4096 pixels against limits of 2000 and 4000."""
    write(tmp_path, {1: encoded(quarters(8)), 2: encoded(quarters(64))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    found = scan(tmp_path, [1, 2], max_bad_fraction=0.5)
    assert found.good_ids.tolist() == [1]
    assert "too many pixels" in str(found.excluded.loc[0, "reason"])


def test_missing_images_and_unreadable_names_are_left_out(tmp_path: Path) -> None:
    """A folder with the name of an image is not an image either."""
    write(tmp_path, {1: encoded(quarters())})
    (tmp_path / "3.jpg").mkdir()
    found = scan(tmp_path, [1, 2, 3], max_bad_fraction=1.0)
    assert found.excluded["reason"].to_list() == ["missing", "cannot be read: Is a directory"]


def write(folder: Path, files: dict[int, bytes]) -> None:
    """Write `<id>.jpg` files."""
    for image_id, data in files.items():
        (folder / f"{image_id}.jpg").write_bytes(data)


def scan(folder: Path, ids: list[int], **options: Any) -> ImageScan:
    """Scan with the cache beside the images."""
    return scan_images(folder, np.array(ids), cache_path=folder / "scan.parquet", **options)


def test_good_ids_keep_their_order_and_progress_ends_at_all(tmp_path: Path) -> None:
    """Ids are returned in the order given, whichever thread ends first; progress rises to the total."""
    ids = [*range(300, 100, -3), 1]
    write(tmp_path, {image_id: encoded(quarters(8)) for image_id in ids if image_id != 102})
    steps: list[tuple[int, int]] = []
    found = scan(tmp_path, ids, max_bad_fraction=0.1, num_workers=3, on_progress=lambda *step: steps.append(step))
    assert found.good_ids.tolist() == [image_id for image_id in ids if image_id != 102]
    assert found.good_ids.dtype == np.int64
    assert steps == sorted(steps)
    assert steps[-1] == (len(ids), len(ids))


def test_more_bad_images_than_allowed_stop_with_counts_and_examples(tmp_path: Path) -> None:
    """Exactly the allowed fraction passes; one more image does not."""
    write(tmp_path, {1: encoded(quarters(8)), 2: b"", 3: encoded(quarters(8)), 4: encoded(quarters(8))})
    assert len(scan(tmp_path, [1, 2, 3, 4], max_bad_fraction=0.25).excluded) == 1
    with pytest.raises(ImagesError) as caught:
        scan(tmp_path, [1, 2, 3, 5], max_bad_fraction=0.25)
    message = str(caught.value)
    assert "2 of 4 images cannot be used (1 empty file, 1 missing); at most 25.00% may" in message
    assert "2.jpg empty file; 5.jpg missing" in message
    assert "data.max_bad_fraction" in message


def test_a_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    """One error instead of one for each image."""
    with pytest.raises(ConfigError, match=r"does not exist\. Give the folder that holds AVA's <image id>\.jpg files"):
        scan_images(tmp_path / "none", [1], cache_path=tmp_path / "cache")


def test_padding_of_truncated_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that makes Pillow fill in the missing part must not change the training data."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImagesError, match="LOAD_TRUNCATED_IMAGES"):
        scan(tmp_path, [1])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list to which the scan's decoded images are added."""
    calls: list[bytes] = []
    decode = images.decode_rgb

    def counted(data: bytes) -> Image.Image:
        calls.append(data)
        return decode(data)

    monkeypatch.setattr("ava_pipeline.train.data.images.decode_rgb", counted)
    return calls


def test_a_second_scan_decodes_only_what_changed(tmp_path: Path, decoded: list[bytes]) -> None:
    """A new size or modification time alone is a change; missing files are checked again every time."""
    write(tmp_path, {1: encoded(quarters(8)), 2: b"text", 3: encoded(quarters(16))})
    first = scan(tmp_path, [1, 2, 3, 4], max_bad_fraction=1.0)
    assert len(decoded) == 3
    again = scan(tmp_path, [1, 2, 3, 4], max_bad_fraction=1.0)
    assert len(decoded) == 3
    pd.testing.assert_frame_equal(again.excluded, first.excluded)

    write(tmp_path, {4: encoded(quarters(8))})
    os.utime(tmp_path / "1.jpg", ns=(1, 1))
    stat = (tmp_path / "2.jpg").stat()
    write(tmp_path, {2: encoded(quarters(8))})
    os.utime(tmp_path / "2.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert scan(tmp_path, [1, 2, 3, 4]).good_ids.tolist() == [1, 2, 3, 4]
    assert len(decoded) == 6


def test_images_of_another_scan_stay_in_the_cache(tmp_path: Path, decoded: list[bytes]) -> None:
    """A scan of a part keeps the outcomes of the other images."""
    write(tmp_path, {1: encoded(quarters(8)), 2: encoded(quarters(8))})
    scan(tmp_path, [1, 2])
    os.utime(tmp_path / "1.jpg", ns=(1, 1))
    scan(tmp_path, [1])
    scan(tmp_path, [1, 2])
    assert len(decoded) == 3


def test_an_interrupted_scan_keeps_what_it_decoded(tmp_path: Path, decoded: list[bytes]) -> None:
    """Ctrl-C after thousands of images does not lose their outcomes."""
    ids = list(range(64))
    write(tmp_path, {image_id: encoded(quarters(8)) for image_id in ids})

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path, ids, num_workers=1, on_progress=interrupt)
    decoded.clear()
    scan(tmp_path, ids)
    assert len(decoded) <= 32


def test_a_damaged_cache_is_rebuilt_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After any flipped byte or cut the outcome is correct, and the next scan finds a whole cache."""
    write(tmp_path, {1: encoded(quarters(8)), 2: b"text"})
    cache = tmp_path / "scan.parquet"
    scan(tmp_path, [1, 2], max_bad_fraction=0.5)
    whole = cache.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(0, len(whole), 23)]
    for damaged in [b"", b"text", whole[:-1], whole[: len(whole) // 2], *flipped]:
        cache.write_bytes(damaged)
        found = scan(tmp_path, [1, 2], max_bad_fraction=0.5)
        assert found.good_ids.tolist() == [1]
        assert found.excluded["reason"].to_list() == ["not an image"]
    cache.write_bytes(whole[:-1])
    caplog.clear()
    scan(tmp_path, [1, 2], max_bad_fraction=0.5)
    assert "every image is decoded again" in caplog.text
    caplog.clear()
    scan(tmp_path, [1, 2], max_bad_fraction=0.5)
    assert not caplog.records


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The outcome of the scan does not depend on it."""
    write(tmp_path, {1: encoded(quarters(8))})
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = scan_images(tmp_path, [1], cache_path=tmp_path / "file" / "scan.parquet")
    assert found.good_ids.tolist() == [1]
    assert "not written" in caplog.text


def test_excluded_images_are_written_as_csv(tmp_path: Path) -> None:
    """Id, file and reason, which pandas reads back."""
    write(tmp_path, {1: encoded(quarters(8)), 2: b""})
    target = tmp_path / "run" / "excluded_images.csv"
    write_excluded(target, scan(tmp_path, [1, 2, 3], max_bad_fraction=1.0))
    assert target.read_text() == "image_id,file,reason\n2,2.jpg,empty file\n3,3.jpg,missing\n"
    write_excluded(target, scan(tmp_path, [1]))
    assert target.read_text() == "image_id,file,reason\n"
