"""The one way to open an image: decoded in full, upright, RGB, or an error; never a substitute."""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ava_pipeline.contract.files import written_aside
from ava_pipeline.errors import ConfigError, ImagesError

# Nothing else is ever tried: some of Pillow's other formats start programs, or apply the orientation themselves.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
# https://exiftool.org/TagNames/EXIF.html, tag 0x0112: what undoes each stored orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_rgb(path: str | Path) -> Image.Image:
    """Decode an image in full, upright, as 8-bit RGB.

    Greyscale, CMYK, progressive and palette images become RGB; transparency is laid on white; EXIF orientation is
    applied; the first frame of an animation is taken. Colour profiles are not applied. What the file holds counts, not
    its name.

    Raises:
        ImagesError: The file is missing, empty, truncated, no image, or larger than Pillow's limit for decompression
            bombs. There is no substitute image.
    """
    path = Path(path)
    try:
        return decode_rgb(path.read_bytes())
    except (OSError, ImagesError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else error
        raise ImagesError(
            f"{path}: {reason}. Restore the file and go on with --resume, or begin anew with --restart: the scan for "
            "broken images then leaves it out."
        ) from error


def decode_rgb(data: bytes) -> Image.Image:
    """Return the file's bytes as `open_rgb` does the file, or raise an ImagesError whose text is the bare reason."""
    if not data:
        raise ImagesError("empty file")
    try:
        with _pillow_warnings():
            image = Image.open(BytesIO(data), formats=_FORMATS)
        image.load()
        with _pillow_warnings():
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # damaged files make Pillow raise nearly everything
        raise ImagesError(_reason(error)) from error
    if image.mode not in _EIGHT_BIT_MODES:
        raise ImagesError(f"not an 8-bit image: its pixels are of Pillow's mode {image.mode}")
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    return _rgb(upright, transparent="transparency" in image.info or "A" in image.getbands())


def _rgb(image: Image.Image, *, transparent: bool) -> Image.Image:
    """Return the image as RGB, transparency laid on white: dropping it would show colours that were never visible."""
    if not transparent:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


_warnings_lock = Lock()


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Make Pillow's warning of a decompression bomb an error, and drop its remarks on odd metadata.

    `catch_warnings` replaces a list that all threads share, so that only one of ours may be inside at a time. Pixels
    are decoded outside.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _reason(error: Exception) -> str:
    """Name what is wrong with a file that Pillow could not decode: a kind, then details behind a colon."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"too many pixels: {error}"
    if "truncated" in str(error).lower():
        return f"truncated: {error}"
    return f"damaged: {type(error).__name__}: {error}"


def system_reason(error: OSError) -> str:
    """Name why the system could not read a file."""
    return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"


__all__ = ["ImageScan", "image_path", "open_rgb", "scan_images", "write_excluded"]

logger = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

_PER_TASK = 32
_NUM_SHOWN = 5
_CACHE_COLUMNS: dict[str, pa.DataType] = {
    "image_id": pa.int64(),
    "size_bytes": pa.int64(),
    "mtime_ns": pa.int64(),
    "reason": pa.string(),
}
# Another Pillow may decode what this one refuses; another number stands for other rules of ours.
_CACHE_SCHEMA = pa.schema(_CACHE_COLUMNS, metadata={"ava_pipeline.scan": f"1, Pillow {PIL.__version__}"})


@dataclass(frozen=True, eq=False)
class ImageScan:
    """What a scan found.

    Attributes:
        good_ids: int64[G], the ids whose image decodes in full, in the order they were given.
        excluded: One row for each other id: `image_id` (int64), `file`, `reason`.
    """

    good_ids: Int64Array
    excluded: pd.DataFrame


class _Check(NamedTuple):
    """One file's outcome: `reason` is empty for a good image.

    `size_bytes` is -1 where the system could not read the file: no file has that size, so that it is tried every time.
    """

    size_bytes: int
    mtime_ns: int
    reason: str


def image_path(folder: Path, image_id: int) -> Path:
    """Return where the image lies: `<image_id>.jpg`, never AVA's running index."""
    return folder / f"{image_id}.jpg"


def scan_images(
    folder: str | Path,
    image_ids: npt.ArrayLike,
    *,
    cache_path: str | Path,
    max_bad_fraction: float = 0.01,
    num_workers: int | None = None,
    on_progress: Progress | None = None,
) -> ImageScan:
    """Decode every image once in full and tell the good from the rest.

    Args:
        folder: Holds `<image_id>.jpg` files.
        image_ids: The ids to look at, int64[N].
        cache_path: Outcomes by id, file size and modification time, so that only new or changed files are decoded. A
            damaged cache is rebuilt. What was decoded before an interruption is kept.
        max_bad_fraction: The share of unusable images from 0 to 1 above which something is wrong altogether.
        num_workers: Threads. None: some more than there are cores, for disks that answer late. 0: one.
        on_progress: Called in this thread with the number of images done and of all.

    Raises:
        ConfigError: The folder is missing.
        ImagesError: More than `max_bad_fraction` of the images cannot be used.
    """
    folder, cache_path = Path(folder), Path(cache_path)
    _refuse_unusable(folder)
    ids = np.asarray(image_ids, dtype=np.int64)
    known = _read_cache(cache_path)
    checks = dict(known)
    try:
        for done, (image_id, check) in enumerate(_checked(folder, ids, known, num_workers), start=1):
            checks[image_id] = check
            if on_progress and (done % _PER_TASK == 0 or done == len(ids)):
                on_progress(done, len(ids))
    finally:
        if checks != known:
            _write_cache(cache_path, checks)
    scan = _sorted_out(ids, checks)
    _refuse_too_many(folder, scan, max_bad_fraction)
    return scan


def write_excluded(path: str | Path, scan: ImageScan) -> None:
    """Write the excluded images as CSV: `image_id,file,reason`. The file appears complete or not at all."""
    with written_aside(Path(path)) as file:
        scan.excluded.to_csv(file, index=False, lineterminator="\n")


def _refuse_unusable(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"Image folder {folder} is not there. Give the folder that holds AVA's <image id>.jpg files.")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImagesError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: Pillow would pass truncated images off as whole ones, padded "
            "with grey. Leave it False; truncated images are left out and listed."
        )


def _checked(
    folder: Path, ids: Int64Array, known: dict[int, _Check], num_workers: int | None
) -> Iterator[tuple[int, _Check]]:
    """Yield id and outcome in the order of the ids; a few threads work ahead."""

    def check_some(start: int) -> list[tuple[int, _Check]]:
        some = ids[start : start + _PER_TASK].tolist()
        return [(image_id, _check(image_path(folder, image_id), known.get(image_id))) for image_id in some]

    pool = ThreadPoolExecutor(None if num_workers is None else max(num_workers, 1))
    try:
        for results in pool.map(check_some, range(0, len(ids), _PER_TASK)):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _check(path: Path, known: _Check | None) -> _Check:
    """Decode the file unless size and modification time are those of the known outcome."""
    try:
        stat = path.stat()
        if known and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known
        data = path.read_bytes()
    except OSError as error:
        return _Check(-1, 0, system_reason(error))
    try:
        decode_rgb(data)
    except ImagesError as error:
        return _Check(stat.st_size, stat.st_mtime_ns, str(error))
    return _Check(stat.st_size, stat.st_mtime_ns, "")


def _sorted_out(ids: Int64Array, checks: dict[int, _Check]) -> ImageScan:
    reasons = np.array([checks[image_id].reason for image_id in ids.tolist()], dtype=object)
    bad = reasons.astype(bool)
    files = [image_path(Path(), image_id).name for image_id in ids[bad].tolist()]
    return ImageScan(ids[~bad], pd.DataFrame({"image_id": ids[bad], "file": files, "reason": reasons[bad]}))


def _refuse_too_many(folder: Path, scan: ImageScan, max_bad_fraction: float) -> None:
    bad, total = len(scan.excluded), len(scan.excluded) + len(scan.good_ids)
    if bad <= max_bad_fraction * total:
        return
    kinds = Counter(str(reason).partition(":")[0] for reason in scan.excluded["reason"])
    first = scan.excluded.head(_NUM_SHOWN)
    shown = "; ".join(f"{file} {reason}" for file, reason in zip(first["file"], first["reason"], strict=True))
    raise ImagesError(
        f"{folder}: {bad} of {total} images cannot be used ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}); "
        f"at most {max_bad_fraction:.2%} may be left out. The first: {shown}. Check that this is the folder of AVA's "
        "<image id>.jpg files and that all were downloaded, or raise data.max_bad_fraction."
    )


def _read_cache(path: Path) -> dict[int, _Check]:
    """Return the outcomes by image id; none, with a warning, where the cache cannot be read or is another version's."""
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.warning("%s: damaged (%s); every image is decoded again.", path, error)
        return {}
    if not table.schema.equals(_CACHE_SCHEMA, check_metadata=True):
        logger.warning("%s: written by another version; every image is decoded again.", path)
        return {}
    ids, *columns = (column.to_pylist() for column in table.columns)
    return {image_id: _Check(*values) for image_id, *values in zip(ids, *columns, strict=True)}


def _write_cache(path: Path, checks: dict[int, _Check]) -> None:
    rows = [dict(zip(_CACHE_COLUMNS, (image_id, *check), strict=True)) for image_id, check in checks.items()]
    table = pa.Table.from_pylist(rows, schema=_CACHE_SCHEMA)
    try:
        with written_aside(path) as file:
            pq.write_table(table, file, write_page_checksum=True)
    except OSError as error:
        logger.warning("%s: not written (%s); the next run decodes every image again.", path, error)
