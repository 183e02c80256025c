"""Opening images (fully decoded, upright, RGB, or an error) and scanning a folder for those that can be used."""

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

from ava_pipeline.contract.arrays import Integers
from ava_pipeline.contract.files import written_aside
from ava_pipeline.errors import ConfigError, ImagesError

_log = logging.getLogger("ava_pipeline")

Progress = Callable[[int, int], None]

# No other format is tried: some of Pillow's other readers start programs, or apply the orientation themselves.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
# https://exiftool.org/TagNames/EXIF.html, tag 0x0112: the transpose that undoes each stored orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PER_TASK = 32
_NUM_SHOWN = 5
_CACHE_COLUMNS: dict[str, pa.DataType] = {
    "image_id": pa.int64(),
    "size_bytes": pa.int64(),
    "mtime_ns": pa.int64(),
    "reason": pa.string(),
}
# Another version of Pillow may decode files that this one refuses; the number is the version of our own rules.
_CACHE_SCHEMA = pa.schema(_CACHE_COLUMNS, metadata={"ava_pipeline.scan": f"1, Pillow {PIL.__version__}"})
# `catch_warnings` replaces a list that all threads share, so pixels are decoded outside this lock.
_warnings_lock = Lock()


def open_rgb(path: str | Path) -> Image.Image:
    """Decode an image fully, upright, as 8-bit RGB, or raise ImagesError; no substitute image is returned.

    Greyscale, CMYK, progressive and palette images become RGB; transparency is blended with white; EXIF orientation is
    applied; the first frame of an animation is used. Colour profiles are not applied. The format is detected from the
    content, not from the name. Images above Pillow's limit for decompression bombs are refused.
    """
    path = Path(path)
    try:
        return decode_rgb(path.read_bytes())
    except (OSError, ImagesError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else error
        raise ImagesError(
            f"{path}: {reason}. Restore the file and continue with --resume, or start over with --restart: the scan "
            "for broken images then excludes it."
        ) from error


def decode_rgb(data: bytes) -> Image.Image:
    """Decode the bytes of a file like `open_rgb`, or raise an ImagesError whose text is only the reason."""
    if not data:
        raise ImagesError("empty file")
    try:
        with _pillow_warnings():
            image = Image.open(BytesIO(data), formats=_FORMATS)
        image.load()
        with _pillow_warnings():
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:  # is not about the file
        raise
    except Exception as error:  # Pillow raises almost anything for a damaged file
        raise ImagesError(_reason(error)) from error
    if image.mode not in _EIGHT_BIT_MODES:
        raise ImagesError(f"expected an 8-bit image, got Pillow mode {image.mode}")
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    return _rgb(upright, transparent="transparency" in image.info or "A" in image.getbands())


def _rgb(image: Image.Image, *, transparent: bool) -> Image.Image:
    """Convert to RGB. Blend transparency with white: dropping it would show colours that were never visible."""
    if not transparent:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Turn Pillow's warning about a decompression bomb into an error, and ignore its warnings about metadata."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _reason(error: Exception) -> str:
    """Say why Pillow could not decode a file: a category, then details after a colon."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"too many pixels: {error}"
    if "truncated" in str(error).lower():
        return f"truncated: {error}"
    return f"damaged: {type(error).__name__}: {error}"


def system_reason(error: OSError) -> str:
    """Say why the system could not read a file."""
    return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"


@dataclass(frozen=True, eq=False)
class ImageScan:
    """The result of a scan."""

    good_ids: Integers  # int64[G], the ids whose image decodes fully, in the given order
    excluded: pd.DataFrame  # one row for every other id: `image_id` (int64), `file`, `reason`


class _Check(NamedTuple):
    """The outcome for one file."""

    size_bytes: int  # -1 if the system could not read the file: no file has that size, so it is tried again every time
    mtime_ns: int
    reason: str  # empty for a good image


def image_path(folder: Path, image_id: int) -> Path:
    """Return the path of an image: `<image_id>.jpg`, never AVA's running index."""
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
    """Decode every image once and separate the good ones from the rest.

    `cache_path` keeps outcomes by id, file size and modification time, so that only new or changed files are decoded; a
    damaged cache is rebuilt, and outcomes from before an interruption are kept. `num_workers` is a number of threads:
    None uses a few more than there are cores, for slow disks; 0 uses one. `on_progress` is called in this thread with
    the number of images done and the total.

    Raise ConfigError if the folder is missing, ImagesError if more than `max_bad_fraction` of the images cannot be
    used.
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
        raise ConfigError(
            f"Image folder {folder} does not exist. Give the folder that holds AVA's <image id>.jpg files."
        )
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImagesError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: Pillow would return truncated images padded with grey as if "
            "they were complete. Leave it False; truncated images are excluded and listed."
        )


def _checked(
    folder: Path, ids: Integers, known: dict[int, _Check], num_workers: int | None
) -> Iterator[tuple[int, _Check]]:
    """Yield ids and outcomes in the order of the ids, while a few threads work ahead."""

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
    """Decode the file unless its size and modification time equal those of the cached outcome."""
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


def _sorted_out(ids: Integers, checks: dict[int, _Check]) -> ImageScan:
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
        f"at most {max_bad_fraction:.2%} may be excluded. The first: {shown}. Check that this is the folder of AVA's "
        "<image id>.jpg files and that all were downloaded, or raise data.max_bad_fraction."
    )


def _read_cache(path: Path) -> dict[int, _Check]:
    """Return the outcomes by image id; empty, with a warning, if the cache cannot be read or has another version."""
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        _log.warning("%s: damaged (%s); every image is decoded again.", path, error)
        return {}
    if not table.schema.equals(_CACHE_SCHEMA, check_metadata=True):
        _log.warning("%s: written by another version; every image is decoded again.", path)
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
        _log.warning("%s: not written (%s); the next run decodes every image again.", path, error)
