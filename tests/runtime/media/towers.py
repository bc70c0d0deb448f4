"""A tiny random Gemma 3n with all towers: transformers' model and processor, a bundle and an ONNX directory."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.chat.messages import Content, Contents
from tests.oracles import Expected, Oracle
from tools.tiny_towers import CLIP_TOKENS, IMAGE_PIXELS, IMAGE_TOKENS, write_tiny_towers

CONTEXT_TOKENS = 192
MEDIA_INPUTS = ("pixel_values", "input_features", "input_features_mask")


@dataclass(frozen=True)
class Towers:
    """A checkpoint with all towers: as transformers sees it, as a bundle and as an ONNX directory."""

    oracle: Oracle
    processor: Any
    bundle: Path
    onnx: Path

    @classmethod
    def write(cls, folder: Path) -> "Towers":
        """Make all of it."""
        oracle = Oracle(write_tiny_towers(folder / "checkpoint"))
        bundle, onnx = folder / "towers.litertlm", folder / "towers"
        options: dict[str, Any] = {"context": CONTEXT_TOKENS, "modalities": ("text", "vision", "audio")}
        convert("custom-fp32", folder / "checkpoint", bundle, prefill=(8, 32), **options)
        convert("custom-fp32", folder / "checkpoint", onnx, format="onnx", **options)
        return cls(oracle, _processor(folder / "checkpoint"), bundle, onnx)

    def inputs(self, text: str, contents: Contents) -> Any:
        """What transformers' processor makes of a rendered prompt."""
        images = [Image.open(part.absolute_path) for part in contents if isinstance(part, Content.ImageFile)]
        clips = [
            soundfile.read(io.BytesIO(part.bytes), dtype="float32")[0]
            for part in contents
            if isinstance(part, Content.AudioBytes)
        ]
        return self.processor(text=text, images=[images] if images else None, audio=clips or None, return_tensors="pt")

    def expected(self, inputs: Any, reply: list[int]) -> Expected:
        """transformers' logits for each token of a reply to a prompt."""
        media = {key: value for key, value in inputs.items() if key in MEDIA_INPUTS}
        return self.oracle.expected([*inputs["input_ids"][0].tolist(), *reply[:-1]], **media).last(len(reply))


def _processor(checkpoint: Path) -> Any:
    """transformers' for this checkpoint, with the image processor that needs no torchvision."""
    from transformers import AutoTokenizer, Gemma3nAudioFeatureExtractor, Gemma3nProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(
        size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}, resample=Image.Resampling.BILINEAR, do_normalize=False
    )
    return Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        images,
        AutoTokenizer.from_pretrained(checkpoint),
        image_seq_length=IMAGE_TOKENS,
        audio_seq_length=CLIP_TOKENS,
    )
