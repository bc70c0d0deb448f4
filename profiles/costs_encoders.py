"""What encoding an image or a recording costs beside the decoder, when its encoder is loaded for it and released after.

While an encoder runs, the decoder's keys, values and arenas stay, but nobody reads its weights: their pages are the
first that the kernel may take, and reading them again is what the budget's owner pays for an image. So a request needs
the larger of two footprints, and never both encoders at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gemma_edge.profiles.costs import EMBEDDING_PART, PLE_PART, WEIGHTS_PART
from gemma_edge.profiles.footprint import Footprint, Part

_IDLE_PARTS = (WEIGHTS_PART, EMBEDDING_PART, PLE_PART)


class EncoderKind(StrEnum):
    VISION = "vision encoder"
    AUDIO = "audio encoder"


class EncoderDesign(StrEnum):
    """What an encoder is: of Gemma 3n, then of Gemma 4."""

    MOBILENET = "MobileNet-V5"  # of pixels
    USM = "conformer, a token every 16 frames"
    PATCHES = "transformer of patches"
    CONFORMER = "conformer, a token every 4 frames"

    @property
    def kind(self) -> EncoderKind:
        """What it encodes."""
        is_vision = self in (EncoderDesign.MOBILENET, EncoderDesign.PATCHES)
        return EncoderKind.VISION if is_vision else EncoderKind.AUDIO


# What RssAnon grows by while a full-size int8 encoder runs, 2 threads, a warm weight cache, ai-edge-litert 2.3.0: of
# Gemma 3n 282 MiB for 768 x 768 pixels, 170 MiB for 3008 frames; of Gemma 4 141 MiB for 2520 patches, 178 MiB for 3000
# frames. RssFile grows by the weights. Released, 10 to 22 MiB are left.
_FIXED_ANON_BYTES = 20_000_000
_ANON_BYTES_PER_INPUT = {
    EncoderDesign.MOBILENET: 470,  # a pixel
    EncoderDesign.USM: 53_000,  # a frame
    EncoderDesign.PATCHES: 51_000,  # a patch
    EncoderDesign.CONFORMER: 56_000,  # a frame
}
_SOURCE = "measured: loaded for the image or recording, then released"


@dataclass(frozen=True)
class EncoderShape:
    """weights_bytes: its sections, the adapter's included. inputs: pixels or patches of an image, or frames."""

    design: EncoderDesign
    weights_bytes: int
    inputs: int

    @property
    def kind(self) -> EncoderKind:
        """What it encodes."""
        return self.design.kind

    @property
    def part(self) -> Part:
        """What is added while it runs. Weights are mapped from XNNPACK's cache."""
        anon_bytes = _FIXED_ANON_BYTES + _ANON_BYTES_PER_INPUT[self.design] * self.inputs
        return Part(self.kind, anon_bytes, self.weights_bytes, _SOURCE)


def with_encoders(text: Footprint, encoders: Iterable[EncoderShape]) -> Footprint:
    """The largest moment of a run that also encodes: answering, or encoding with one of these."""
    return max((text, *(_encoding(text, encoder) for encoder in encoders)), key=lambda moment: moment.total_bytes)


def _encoding(text: Footprint, encoder: EncoderShape) -> Footprint:
    kept = (Part(p.name, p.anon_bytes, 0 if p.name in _IDLE_PARTS else p.file_bytes, p.source) for p in text.parts)
    return Footprint.of((*kept, encoder.part))
