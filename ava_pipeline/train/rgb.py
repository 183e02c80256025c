"""The one way to open an image: decoded in full, upright, RGB, or an error; never a substitute."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import ExifTags, Image, UnidentifiedImageError

from ava_pipeline.errors import ImagesError

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
