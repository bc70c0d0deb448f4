"""Images: pixels against Hugging Face's processor, and files that are no images or strange ones."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.media.image import MOST_PIXELS, decode, pixel_values
from gemma_edge.runtime.media.item import MediaItem, MediaKind
from tests.media_files import PHOTOGRAPHS, photograph

SIZE = 96
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def item(data: Path | bytes) -> MediaItem:
    return MediaItem.of(MediaKind.IMAGE, data)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quarters(mode: str = "RGB") -> Image.Image:
    """Red, green; blue, white."""
    corners = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
    return Image.fromarray(corners.repeat(16, 0).repeat(16, 1)).convert(mode)


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    right, bottom = image.width - 2, image.height - 2
    return [image.getpixel(at) for at in ((1, 1), (right, 1), (1, bottom), (right, bottom))]  # type: ignore[misc]


def expected(path: Path, size: int) -> NDArray[np.float32]:
    """What transformers makes of a file, through its own loader."""
    from transformers.image_utils import load_image
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(
        size={"height": size, "width": size}, resample=Image.Resampling.BILINEAR, do_normalize=False
    )
    planes: NDArray[np.float32] = processor(load_image(str(path)), return_tensors="np")["pixel_values"]
    return planes.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("size", [768, 96, 1000])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_give_hugging_faces_pixels(name: str, size: int) -> None:
    path = photograph(name)
    pixels = pixel_values(item(path), size, size)
    assert pixels.shape == (1, size, size, 3)
    assert pixels.dtype == np.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert float(np.abs(pixels - expected(path, size)).max()) <= 1e-6


# ---------------------------------------------------------------- right


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "PNG"), ("CMYK", "TIFF"), ("RGBA", "PNG"), ("P", "GIF"), ("RGB", "WEBP")]
)
def test_modes_and_formats_keep_their_colours(mode: str, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = corners(decode(item(encoded(quarters(mode), kind, **options))))
    assert found == [RED, GREEN, BLUE, WHITE]


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    found = np.array(corners(decode(item(encoded(quarters("CMYK"), "JPEG", quality=100)))))
    assert np.abs(found - [RED, GREEN, BLUE, WHITE]).max() < 30


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_a_camera_that_was_turned(orientation: int, shown: list[tuple[int, int, int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = np.array(corners(decode(item(encoded(quarters(), "JPEG", exif=exif, quality=100, subsampling=0)))))
    assert np.abs(found - shown).max() < 30


def test_transparency_is_left_out_as_hugging_face_does() -> None:
    image = quarters("RGBA")
    image.putalpha(0)
    assert corners(decode(item(encoded(image, "PNG")))) == [RED, GREEN, BLUE, WHITE]


def test_gray_of_8_and_of_16_bits() -> None:
    ramp = np.arange(0, 65_536, 256, dtype=np.uint16).reshape(16, 16)
    deep = decode(item(encoded(Image.fromarray(ramp), "PNG")))
    flat = decode(item(encoded(Image.fromarray((ramp >> 8).astype(np.uint8)), "PNG")))
    assert np.array_equal(np.asarray(deep), np.asarray(flat))
    assert np.asarray(flat)[3, 5].tolist() == [53, 53, 53]


def test_one_pixel_fills_the_image() -> None:
    pixels = pixel_values(item(encoded(Image.new("RGB", (1, 1), (255, 51, 0)), "PNG")), 32, 48)
    assert pixels.shape == (1, 32, 48, 3)
    assert np.allclose(pixels, [1.0, 0.2, 0.0])


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    assert corners(decode(item(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))))[0] == RED


# ---------------------------------------------------------------- refused


def bomb(width: int, height: int) -> bytes:
    """A PNG of 20 kB that says it has so many pixels, and has as many."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # one bit a pixel, gray
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def truncated() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(noise), "JPEG")[:2000]


def floats() -> bytes:
    return encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"no image at all", "the image: not an image that Pillow knows; give a JPEG, PNG, WebP or GIF file"),
        (lambda: b"", "the image: has no bytes; give a file with content"),
        (
            lambda: bomb(20_000, 20_000),
            f"the image: more than {2 * MOST_PIXELS} pixels, at most {MOST_PIXELS} are read; scale it down",
        ),
        (
            floats,
            "the image: cannot be decoded (its pixels are floating-point numbers); save it as JPEG or PNG",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(MediaError) as caught:
        pixel_values(item(make()), SIZE, SIZE)
    assert str(caught.value) == message


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_are_read() -> None:
    with pytest.raises(MediaError) as caught:
        decode(item(bomb(10_000, 10_000)))
    assert str(caught.value) == (f"the image: 10000 x 10000 pixels, at most {MOST_PIXELS} are read; scale it down")


def test_a_truncated_jpeg() -> None:
    with pytest.raises(MediaError) as caught:
        decode(item(truncated()))
    assert str(caught.value).startswith("the image: cannot be decoded (image file is truncated")
    assert str(caught.value).endswith("); save it as JPEG or PNG")
    assert "\n" not in str(caught.value)


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.jpg", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(MediaError) as caught:
            decode(item(path))
        assert str(caught.value) == f"{path}: cannot be read ({reason}); check the path"


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MediaError, match=r"^Pillow cannot be loaded \(.*\); pip install 'gemma-edge\[encoders\]'$"):
        pixel_values(item(b"x"), SIZE, SIZE)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "an EPS or PostScript file, which is not read"),
        (b"\xc5\xd0\xd3\xc6\x20\x00\x00\x00", "an EPS or PostScript file, which is not read"),
        (b"%PDF-1.7\n", "a PDF document, which is not read"),
        (b"\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing, which is not read"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "a HEIC image, which is not read"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00", "an AVIF image, which is not read"),
        (b"8BPS\x00\x01", "a Photoshop file, which is not read"),
        (b"\x00\x00\x01\x00\x01\x00", "an icon, which is not read"),
        (b"FORM\x00\x00", "not an image that Pillow knows"),
    ],
)
def test_formats_that_are_refused_by_name(data: bytes, found: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode(item(data + bytes(100)))
    assert str(caught.value) == f"the image: {found}; give a JPEG, PNG, WebP or GIF file"


def test_no_other_program_ever_sees_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS to Ghostscript."""
    import subprocess

    def started(*_args: object, **_options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    file = io.BytesIO()
    quarters().save(file, "EPS")
    with pytest.raises(MediaError, match="EPS"):
        decode(item(file.getvalue()))
