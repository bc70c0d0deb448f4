"""What encoding adds to a footprint: the larger of two moments."""

from gemma_edge.profiles.costs_encoders import EncoderDesign, EncoderKind, EncoderShape, with_encoders
from gemma_edge.profiles.footprint import Footprint, Part
from gemma_edge.profiles.sizes import MIB

VISION = EncoderShape(EncoderDesign.MOBILENET, 303_000_000, 768 * 768)
AUDIO = EncoderShape(EncoderDesign.USM, 659_000_000, 3008)


def text(weights_bytes: int) -> Footprint:
    return Footprint.of(
        (
            Part("decoder weights", 0, weights_bytes, "computed"),
            Part("embedding rows", 0, 30 * MIB, "computed"),
            Part("KV cache", 100 * MIB, 0, "computed"),
            Part("runtime", 90 * MIB, 0, "measured"),
            Part("libraries", 0, 20 * MIB, "measured"),
        )
    )


def test_the_measured_encoders_are_met() -> None:
    """As measured at full size."""
    assert abs(VISION.part.anon_bytes - 282 * MIB) < 5 * MIB
    assert abs(AUDIO.part.anon_bytes - 170 * MIB) < 5 * MIB
    assert abs(EncoderShape(EncoderDesign.PATCHES, 0, 2520).part.anon_bytes - 141 * MIB) < 5 * MIB
    assert abs(EncoderShape(EncoderDesign.CONFORMER, 0, 3000).part.anon_bytes - 178 * MIB) < 5 * MIB
    assert VISION.part.file_bytes == VISION.weights_bytes


def test_a_large_decoder_hides_its_encoders() -> None:
    large = text(1500 * MIB)
    assert with_encoders(large, (VISION, AUDIO)) == large
    assert with_encoders(large, ()) == large


def test_the_decoders_weights_are_idle_while_an_image_is_encoded() -> None:
    small = text(200 * MIB)
    found = with_encoders(small, (VISION,))
    assert [part.name for part in found.parts] == ["KV cache", "runtime", "libraries", "vision encoder"]
    assert found.anon_bytes == small.anon_bytes + VISION.part.anon_bytes
    assert found.file_bytes == 20 * MIB + VISION.weights_bytes


def test_encoders_are_never_loaded_together() -> None:
    found = with_encoders(text(0), (VISION, AUDIO))
    assert found.total_bytes == max(with_encoders(text(0), (one,)).total_bytes for one in (VISION, AUDIO))
    assert {part.name for part in found.parts} & set(EncoderKind) == {EncoderKind.AUDIO}
