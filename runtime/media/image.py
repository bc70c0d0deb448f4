"""From an image file to pixels as Hugging Face's processors for Gemma 3n and Gemma 4 make them.

That is: upright, RGB with transparency left out, resized, divided by 255, no mean and no deviation (transformers:
`image_utils.load_image`). Gemma 3n stretches to the encoder's size with Pillow's bilinear filter, which averages when
it shrinks (SiglipImageProcessor with the settings of convert_gemma3n_weights.py). Gemma 4 keeps the shape: the image
becomes as large as its number of patches allows, with Pillow's bicubic filter (Gemma4ImageProcessorPil).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Patches:
    """An image as Gemma 4 sees it. values: float32 [n, 3 * side^2], 0 to 1, of each patch its pixels, row by row.
    positions: int32 [n, 2], its column and its row."""

    values: NDArray[np.float32]
    positions: NDArray[np.int32]


@dataclass(frozen=True)
class PatchGrid:
    """How an image is cut. patches: the most. side: pixels of one, down and across. pool: how many of them, down and
    across, become one token."""

    patches: int
    side: int
    pool: int

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of so many pixels (get_aspect_ratio_preserving_size)."""
        factor = math.sqrt(self.patches * self.side**2 / (width * height))
        step, most = self.pool * self.side, self.patches // self.pool**2
        down, across = (math.floor(factor * length / step) for length in (height, width))  # not both 0
        if down == 0:
            down, across = 1, min(width // height, most)
        elif across == 0:
            down, across = min(height // width, most), 1
        return down * self.pool, across * self.pool

    def cut(self, pixels: NDArray[np.float32]) -> Patches:
        """[rows * side, columns * side, 3], row by row."""
        rows, columns = (length // self.side for length in pixels.shape[:2])
        tiles = pixels.reshape(rows, self.side, columns, self.side, 3).swapaxes(1, 2)
        places = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
        return Patches(np.ascontiguousarray(tiles).reshape(rows * columns, -1), places.reshape(-1, 2).astype(np.int32))


def image_patches(item: MediaItem, grid: PatchGrid) -> Patches:
    """The image for an encoder of patches. Raises MediaError as `pixel_values` does."""
    image = decode(item)
    from PIL.Image import Resampling

    rows, columns = grid.shape(*image.size)
    resized = image.resize((columns * grid.side, rows * grid.side), Resampling.BICUBIC)  # itself where it fits
    scaled = np.asarray(resized, np.float64) * (1 / 255)  # as Hugging Face rounds
    return grid.cut(scaled.astype(np.float32))


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
