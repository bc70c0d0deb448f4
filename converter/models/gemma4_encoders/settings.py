"""What a checkpoint's processor says of images and sound, which config.json does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gemma_edge.converter.models.fields import ConfigError, Fields

SOFT_TOKENS: Final = (70, 140, 280, 560, 1120)
"""The largest numbers of embeddings of an image that Gemma 4's processor takes (image_processing_gemma4.py)."""

_PIXELS: Final = 768
_IMAGES: Final[Mapping[str, Any]] = {
    "do_resize": True, "do_rescale": True, "do_normalize": False, "rescale_factor": 1 / 255, "resample": 3,
}  # fmt: skip
_SOUND: Final[Mapping[str, Any]] = {
    "sampling_rate": 16_000, "feature_size": 128, "min_frequency": 0.0, "max_frequency": 8000.0, "preemphasis": 0.0,
    "dither": 0.0, "input_scale_factor": 1.0, "mel_floor": 1e-3, "fft_overdrive": False, "per_bin_mean": None,
    "per_bin_stddev": None, "frame_length": 320, "hop_length": 160, "fft_length": 512,
}  # fmt: skip
"""What our runtime and LiteRT-LM do, who are told none of it (Gemma4ImageProcessor, Gemma4AudioFeatureExtractor)."""


@dataclass(frozen=True)
class MediaSettings:
    """The defaults are those of a checkpoint that comes without its processor.

    images, sound: what the processor says of each, and where; no file where it says nothing.
    """

    images: Mapping[str, Any] = field(default_factory=dict)
    images_file: str = ""
    sound: Mapping[str, Any] = field(default_factory=dict)
    sound_file: str = ""

    @property
    def pixels(self) -> int:
        """Width and height of an image of Gemma 3n. Raises ConfigError where the file says something else."""
        if not self.images_file:
            return _PIXELS
        size: Any = self.images.get("size")
        if not isinstance(size, Mapping) or "height" not in size or size["height"] != size.get("width"):
            raise ConfigError(
                f"{self.images_file}: size is {size!r}, expected equal height and width; this model needs new code"
            )
        return Fields(size, self.images_file).positive("height")

    def soft_tokens(self, patch: int, pool: int) -> int:
        """Embeddings of an image of Gemma 4, at most.

        patch, pool: config.json's. Raises ConfigError where the processor prepares images otherwise.
        """
        f = Fields(self.images, self.images_file)
        f.expect("patch_size", (patch,))
        f.expect("pooling_kernel_size", (pool,))
        for key, value in _IMAGES.items():
            f.expect(key, (value,))
        tokens = f.positive("max_soft_tokens", 280)
        if tokens not in SOFT_TOKENS:
            choices = ", ".join(map(str, SOFT_TOKENS))
            raise ConfigError(
                f"{self.images_file}: max_soft_tokens is {tokens}, expected one of {choices}; fix the checkpoint"
            )
        return tokens

    def check_sound(self) -> None:
        """Raises ConfigError where the processor makes other mel frames than Gemma 4's."""
        for key, value in _SOUND.items():
            Fields(self.sound, self.sound_file).expect(key, (value,))
