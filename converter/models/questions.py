"""What the rest of the converter asks of a family, whichever it is: a checkpoint's numbers, and what others call it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from gemma_edge.converter.models.blocks import AttentionLayer

_ENDLESS_TOKENS = 1 << 30


@dataclass(frozen=True)
class Names:
    """What other programs call a family.

    litert: LiteRT-LM's model type. onnx_architecture, onnx_model_type: of config.json, where transformers.js looks.
    onnx_text_type: of the text_config, for a family that transformers.js knows as a multimodal model only; its tables
    are then a graph of their own. genai: onnxruntime-genai's model type, where it has one. processor, audio_features:
    transformers' classes that prepare images and sound. template: of templates/, for checkpoints without one.
    """

    litert: str
    onnx_architecture: str
    onnx_model_type: str
    onnx_text_type: str | None = None
    genai: str | None = None
    processor: str | None = None
    audio_features: str | None = None
    template: str = "gemma"


class Wrong(StrEnum):
    """What a converter is known to get wrong in a graph. `gemma-edge verify` tries those that a family could have."""

    SOFTCAP = "missing soft-cap"
    SPARSITY = "missing sparsity"
    UNSHARED = "unshared KV"
    OTHER_OWNER = "wrongly shared KV"
    WINDOW = "missing sliding window"
    ROPE = "one RoPE base for all layers"


def wrong_attention(layers: tuple[AttentionLayer, ...]) -> Iterator[tuple[Wrong, tuple[AttentionLayer, ...]]]:
    """Layers of which each sees all of the past, and layers that all rotate as those without a window do, where these
    are others."""
    whole = [layer.rope for layer in layers if layer.window is None]
    windowless = tuple(replace(layer, window=layer.window and _ENDLESS_TOKENS) for layer in layers)
    one_rope = tuple(replace(layer, rope=whole[0] if whole else layer.rope) for layer in layers)
    yield from (
        (wrong, other) for wrong, other in ((Wrong.WINDOW, windowless), (Wrong.ROPE, one_rope)) if other != layers
    )


class Config(Protocol):
    """The numbers of one checkpoint's decoder."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def max_context_tokens(self) -> int:
        """What it was trained for."""

    @property
    def attention(self) -> tuple[AttentionLayer, ...]:
        """One for each layer."""

    @property
    def eps(self) -> float:
        """What norms add to a mean square."""

    @property
    def softcap(self) -> float | None:
        """Bound of the logits."""

    @property
    def kv_layers(self) -> int:
        """How many layers, the first ones, own keys and values; the others read those of one before them."""

    @property
    def ffn_width(self) -> int:
        """The widest feed-forward part of a layer."""

    @property
    def residual_streams(self) -> int:
        """States of width D that a layer hands on side by side: AltUp's inputs; 1 without it."""

    @property
    def ple_values(self) -> int:
        """Values that a token looks up for all layers together; 0 without per-layer embeddings."""

    @property
    def tied_head(self) -> bool:
        """Whether the head reads the embedding's table."""

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values `layer` reads; itself where it owns them."""

    def unused_tensors(self) -> Iterator[str]:
        """Prefixes of what checkpoints store although no layer reads it."""

    def wrong(self) -> Iterator[tuple[Wrong, "Config"]]:
        """The numbers with one mistake each, of those that this model could have."""
