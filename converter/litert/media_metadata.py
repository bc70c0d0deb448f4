"""What LiteRT-LM must know to hear: its generic model type, with the mel front end of the checkpoint's extractor.

The type `gemma3n` would do for images, but its front end is fixed and not transformers': samples as 16-bit integers,
bins up to 7500 Hz, each brought to a fixed mean and deviation (LiteRT-LM runtime/conversation/model_data_processor/
gemma3_data_processor.cc). The generic type is also the one with images that hands tools over as they are, for templates
of fine-tunes. The price: with it, LiteRT-LM parses no tool calls; our runtime does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from litert_lm_builder.runtime.proto.llm_model_type_pb2 import GenericModel

from gemma_edge.converter.checkpoint.processor import audio_settings
from gemma_edge.converter.models.fields import Fields
from gemma_edge.profiles.errors import GemmaEdgeError

# The chat template writes the second of each pair (templates/gemma.jinja), Gemma's own also the first.
IMAGE_PLACEHOLDER: Final = "<start_of_image>|<image_soft_token>"
AUDIO_PLACEHOLDER: Final = "<start_of_audio>|<audio_soft_token>"
MARGIN: Final = "\n\n"  # around each image and each clip (transformers models/gemma3n/processing_gemma3n.py)


class FrontEndError(GemmaEdgeError):
    """preprocessor_config.json asks for audio preprocessing that LiteRT-LM's metadata cannot express."""


@dataclass(frozen=True)
class FrontEnd:
    """How sound becomes mel frames. The defaults are Gemma3nAudioFeatureExtractor's."""

    sample_rate_hz: int = 16_000
    frame_samples: int = 512
    hop_samples: int = 160
    fft_samples: int = 1024
    mel_bins: int = 128
    lowest_hz: float = 125.0
    highest_hz: float = 7600.0
    preemphasis: float = 0.97
    scale: float = 1.0  # of samples in [-1, 1]
    mel_floor: float = 1e-5

    @classmethod
    def read(cls, checkpoint: Path) -> "FrontEnd":
        """From preprocessor_config.json or processor_config.json; the defaults where there is neither.

        Raises FrontEndError for what LiteRT-LM cannot be told, ConfigError for a value that cannot be, CheckpointError
        where a file is not JSON.
        """
        values, name = audio_settings(checkpoint)
        for key, allowed in _FIXED.items():
            if values.get(key, allowed) != allowed:
                raise FrontEndError(
                    f"{checkpoint}: the feature extractor's {key} is {values[key]!r}, LiteRT-LM knows {allowed!r}; "
                    "leave audio out of --modalities"
                )
        f, usual = Fields(values, name), cls()
        frame = f.positive("frame_length", usual.frame_samples)
        return cls(
            sample_rate_hz=f.positive("sampling_rate", usual.sample_rate_hz),
            frame_samples=frame,
            hop_samples=f.positive("hop_length", usual.hop_samples),
            fft_samples=f.positive("fft_length", 2 << math.ceil(math.log2(frame))),
            mel_bins=f.positive("feature_size", usual.mel_bins),
            lowest_hz=f.number("min_frequency", usual.lowest_hz),
            highest_hz=f.number("max_frequency", usual.highest_hz),
            preemphasis=f.number("preemphasis", usual.preemphasis),
            scale=f.number("input_scale_factor", usual.scale),
            mel_floor=f.number("mel_floor", usual.mel_floor),
        )


_FIXED: Mapping[str, Any] = {
    "dither": 0.0, "per_bin_mean": None, "per_bin_stddev": None, "preemphasis_htk_flavor": True,
}  # fmt: skip


def generic_model(front_end: FrontEnd | None, image_size: int | None) -> GenericModel:
    """The model type of a bundle that hears, where front_end is given, and sees, where image_size, in pixels, is."""
    model = GenericModel(
        delimiter_regex=f"({IMAGE_PLACEHOLDER}|{AUDIO_PLACEHOLDER})",
        image_token_regex=IMAGE_PLACEHOLDER,
        audio_token_regex=AUDIO_PLACEHOLDER,
    )
    if image_size is not None:
        model.image_enabled = True
        model.image_tensor_height = model.image_tensor_width = image_size
        model.start_of_image_token.token_str = "<start_of_image>"
        model.image_prefix = model.image_suffix = MARGIN
        model.add_image_end = False  # the adapter's last row is the end of the image
    if front_end is None:
        return model
    model.audio_enabled = True
    model.start_of_audio_token.token_str = "<start_of_audio>"
    model.audio_prefix = model.audio_suffix = MARGIN
    model.add_audio_end = True
    model.audio_num_channels = 1
    model.audio_sample_rate_hz = front_end.sample_rate_hz
    model.audio_frame_length = front_end.frame_samples
    model.audio_hop_length = front_end.hop_samples
    model.audio_fft_length = front_end.fft_samples
    model.audio_num_mel_bins = front_end.mel_bins
    model.audio_mel_low_hz = front_end.lowest_hz
    model.audio_mel_high_hz = front_end.highest_hz
    model.audio_pre_emphasis_factor = front_end.preemphasis
    model.audio_input_scale = front_end.scale
    model.audio_mel_floor = math.log(front_end.mel_floor)  # LiteRT-LM applies it behind the logarithm
    model.audio_normalize_mel = model.audio_add_floor_to_mel_before_log = False
    model.audio_semicausal_padding = model.audio_non_zero_hanning = False
    model.audio_periodic_hanning = True
    return model
