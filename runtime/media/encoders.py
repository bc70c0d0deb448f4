"""What every executor of encoders offers: pixels or a spectrogram in, rows for the decoder out."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.costs_encoders import EncoderDesign
from gemma_edge.runtime.media.audio import WINDOW_SAMPLES
from gemma_edge.runtime.media.image import Patches, PatchGrid, image_patches, image_size, pixel_values
from gemma_edge.runtime.media.item import MediaItem
from gemma_edge.runtime.media.mel import GEMMA3N, GEMMA4, HOP_SAMPLES, FrontEnd

Array = NDArray[np.float32]
Picture: TypeAlias = Array | Patches
"""An image, prepared: float32 [1, H, W, 3], or in patches."""


@dataclass(frozen=True)
class VisionSize:
    """Of an encoder that takes images of one size. tokens: rows of an image, its end not counted."""

    height: int
    width: int
    tokens: int

    @property
    def design(self) -> EncoderDesign:
        """What it is."""
        return EncoderDesign.MOBILENET

    @property
    def inputs(self) -> int:
        """Pixels."""
        return self.height * self.width

    def tokens_of(self, item: MediaItem) -> int:  # noqa: ARG002  as of patches
        """Rows of this image."""
        return self.tokens

    def prepared(self, item: MediaItem) -> Array:
        """Raises MediaError: no image, a damaged one, too many pixels."""
        return pixel_values(item, self.height, self.width)

    def blank(self) -> Array:
        """A black image."""
        return np.zeros((1, self.height, self.width, 3), np.float32)


@dataclass(frozen=True)
class PatchesSize:
    """Of an encoder that takes images of any shape, cut into patches."""

    grid: PatchGrid

    @property
    def design(self) -> EncoderDesign:
        """What it is."""
        return EncoderDesign.PATCHES

    @property
    def inputs(self) -> int:
        """Patches, at most."""
        return self.grid.patches

    def tokens_of(self, item: MediaItem) -> int:
        """As many as its shape allows. Raises MediaError as `prepared` does."""
        rows, columns = self.grid.shape(*image_size(item))
        return rows * columns // self.grid.pool**2

    def prepared(self, item: MediaItem) -> Patches:
        """Raises MediaError: no image, a damaged one, too many pixels."""
        return image_patches(item, self.grid)

    def blank(self) -> Patches:
        """A black image of as many patches as there may be, or nearly."""
        rows, columns = self.grid.shape(1000, 1000)
        return self.grid.cut(np.zeros((rows * self.grid.side, columns * self.grid.side, 3), np.float32))


@dataclass(frozen=True)
class AudioSize:
    """tokens: rows of a window, whether sound fills it or not; None where there is one for every 4 frames of sound.
    frames: most frames of a window; None for any number.
    """

    tokens: int | None
    frames: int | None

    @property
    def design(self) -> EncoderDesign:
        """What it is."""
        return EncoderDesign.CONFORMER if self.tokens is None else EncoderDesign.USM

    @property
    def inputs(self) -> int:
        """Frames of the longest window."""
        return self.front_end.frame_count(WINDOW_SAMPLES) if self.frames is None else self.frames

    @property
    def front_end(self) -> FrontEnd:
        """What makes frames of sound."""
        return GEMMA4 if self.tokens is None else GEMMA3N

    @property
    def window_samples(self) -> int:
        """30 seconds, or as much as the frames hold."""
        if self.frames is None or self.frames >= self.front_end.frame_count(WINDOW_SAMPLES):
            return WINDOW_SAMPLES
        samples = self.front_end.samples_of(self.frames)
        return samples - samples % HOP_SAMPLES  # zeros are appended to the window, so it must leave room for them

    def tokens_of(self, samples: int) -> int:
        """Rows of a recording of so many samples at 16 kHz, heard window by window."""
        full, rest = divmod(samples, self.window_samples)
        return full * self._tokens_of_frames(self.front_end.frame_count(self.window_samples)) + self._tokens_of_frames(
            self.front_end.frame_count(rest)
        )

    def _tokens_of_frames(self, frames: int) -> int:
        if self.tokens is None:
            return -(-frames // FRAMES_PER_TOKEN)
        return self.tokens if frames else 0


FRAMES_PER_TOKEN = 4
"""Of Gemma 4: two convolutions halve them (Gemma4Processor.replace_audio_token)."""


class Encoders(Protocol):
    """The encoders of one model. They are loaded when first used; `release` gives their memory back until then.

    `vision` or `audio` is None where the model has no such encoder. An end row of None means that the embedder holds
    that token's row.
    """

    @property
    def vision(self) -> VisionSize | PatchesSize | None:
        """Of images."""

    @property
    def audio(self) -> AudioSize | None:
        """Of windows of sound."""

    def encode_image(self, picture: Picture) -> tuple[Array, Array | None]:
        """An image as `vision` prepares it -> rows [tokens, D], and the row of the end of an image [1, D]."""

    def encode_audio(self, mel: Array) -> Array:
        """A spectrogram [frames, 128] of one window -> rows [tokens, D], those behind its end being padding."""

    def end_of_audio(self) -> Array | None:
        """The row of the end of a recording [1, D]."""

    def release(self) -> None:
        """Give back what is loaded."""
