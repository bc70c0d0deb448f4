"""From an image file to pixels as Hugging Face's processor for Gemma 3n makes them.

That is: upright, RGB with transparency left out, stretched to the encoder's size (Pillow's bilinear filter, which
averages when it shrinks), divided by 255, no mean and no deviation (transformers: `image_utils.load_image`, and
SiglipImageProcessor with the settings of convert_gemma3n_weights.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.media.errors import MediaError, MissingExtraError
from gemma_edge.runtime.media.item import MediaItem

if TYPE_CHECKING:
    from PIL.Image import Image

Item = TypeVar("Item")

# Only what photographs and screenshots come as. Pillow knows 40 more, some through other programs (EPS: Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_NOT_READ = {
    "an EPS or PostScript file": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "a PDF document": (b"%PDF",),
    "an SVG drawing": (b"<svg", b"<?xml"),
    "a Photoshop file": (b"8BPS",),
    "an icon": (b"\x00\x00\x01\x00",),
}
MOST_PIXELS = 89_478_485
"""Pillow warns above it: a quarter of a GiB as RGB. A file of some KiB can hold many more, all of one colour."""


def pixel_values(item: MediaItem, height: int, width: int) -> NDArray[np.float32]:
    """The image for the vision encoder: float32 [1, height, width, 3], 0 to 1.

    Raises MediaError: no image, a damaged one, too many pixels.
    """
    image = decode(item)
    from PIL.Image import Resampling

    resized = image.resize((width, height), Resampling.BILINEAR)
    pixels = np.array(resized, np.float32)[None]  # [H, W, 3] -> [1, H, W, 3]
    pixels /= 255
    return pixels


def image_size(item: MediaItem) -> tuple[int, int]:
    """Width and height, as its header says. Raises MediaError as `decode` does."""
    return _opened(item, lambda image: image.size)


def decode(item: MediaItem) -> "Image":
    """The image as RGB, upright; of an animation the first frame. Raises MediaError."""
    return _opened(item, _upright)


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    return _as_rgb(ImageOps.exif_transpose(image))


def _opened(item: MediaItem, use: Callable[["Image"], Item]) -> Item:
    """What `use` makes of the image, which is not decoded before."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("Pillow", error) from error

    with item.open() as file:
        try:
            image = Image.open(file, formats=_FORMATS)
            width, height = image.size
            if width * height <= MOST_PIXELS:
                return use(image)
        except UnidentifiedImageError:
            raise MediaError(f"{item.name}: {_other_format(item)}; give a JPEG, PNG, WebP or GIF file") from None
        except Image.DecompressionBombError:
            raise MediaError(
                f"{item.name}: more than {2 * MOST_PIXELS} pixels, at most {MOST_PIXELS} are read; scale it down"
            ) from None
        except Exception as error:  # a damaged file leads Pillow's decoders into whatever exception
            raise MediaError(f"{item.name}: cannot be decoded ({error}); save it as JPEG or PNG") from error
    raise MediaError(f"{item.name}: {width} x {height} pixels, at most {MOST_PIXELS} are read; scale it down")


def _other_format(item: MediaItem) -> str:
    """What a file is that is not opened, as far as its first bytes say."""
    with item.open() as file:
        start = file.read(64)
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"avif", b"avis"):
        return f"{'an AVIF' if start[8:12] in (b'avif', b'avis') else 'a HEIC'} image, which is not read"
    for name, beginnings in _NOT_READ.items():
        if start.lstrip().startswith(beginnings):
            return f"{name}, which is not read"
    return "not an image that Pillow knows"


def _as_rgb(image: "Image") -> "Image":
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits of gray: Pillow would cut values off above 255 instead of scaling them
        from PIL import Image

        values = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(values.astype(np.uint8))
    return image.convert("RGB")
