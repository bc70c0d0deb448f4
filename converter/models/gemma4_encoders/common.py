"""What both encoders of Gemma 4 have: linear layers with bounds, and what brings features into the decoder.

Source: transformers models/gemma4/modeling_gemma4.py, Gemma4ClippableLinear and Gemma4MultimodalEmbedder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph.ops import Graph, Value
from gemma_edge.converter.models.blocks import matrix
from gemma_edge.converter.models.fields import ConfigError, Fields
from gemma_edge.converter.tensors import Derivation, Overlay, Role, SourceTensor, TensorSpec

Floats = NDArray[np.float32]

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
_LARGEST = np.finfo(np.float32).max
_IDS = {
    "vision": (("eoi_token_id", 258_882), ("image_token_id", 258_880)),
    "audio": (("eoa_token_index", 258_883), ("audio_token_id", 258_881)),
}


@dataclass(frozen=True)
class Embedder:
    """One modality's.

    prefix: of its tensors ("embed_audio."). width: of the features. text_vocab_size, text_width: of the decoder's
    table. end_id: of the token that ends an image or a clip; its row is the decoder's own, LiteRT-LM wants it apart.
    place_id: of the token that a prompt has where features go.
    """

    prefix: str
    role: Role
    width: int
    text_vocab_size: int
    text_width: int
    eps: float
    end_id: int
    place_id: int

    @classmethod
    def of(cls, modality: str, width: int, eps: float, values: Mapping[str, Any]) -> "Embedder":
        """values: config.json. Raises ConfigError."""
        text, ids = Fields(values["text_config"]), []
        size = text.positive("vocab_size", 262_144)
        for key, usual in _IDS[modality]:
            ids.append(Fields(values).positive(key, usual))
            if ids[-1] >= size:
                raise ConfigError(
                    f"config.json: {key} is {ids[-1]}, expected an id below vocab_size {size}; fix the checkpoint"
                )
        return cls(f"embed_{modality}.", Role(modality), width, size, text.positive("hidden_size", 2304), eps, *ids)

    def tensors(self) -> Iterator[TensorSpec]:
        """What `embed` multiplies with, and what `end` is."""
        table = SourceTensor("embed_tokens.weight", (self.text_vocab_size, self.text_width), row=self.end_id)
        row = Derivation((table,), _scaled)
        yield TensorSpec.derived(self.prefix + "end", (self.text_width,), Role.NORM, row)
        yield matrix(self.prefix + "embedding_projection.weight", self.text_width, self.width, self.role)

    def embed(self, g: Graph, features: Value) -> Value:
        """[B, N, width] -> [B, N, text_width]."""
        return g.linear(g.rms_norm(features, None, self.eps), self.prefix + "embedding_projection.weight")

    def end(self, g: Graph) -> Value:
        """[1, 1, text_width], the embedding of the token that ends an image or a clip."""
        return g.reshape(g.weight(self.prefix + "end"), (1, 1, self.text_width))

    def places(self) -> tuple[int, ...]:
        """Tokens that are told what padding is told by each layer."""
        return (self.place_id,)

    def overlays(self) -> tuple[Overlay, ...]:
        """None: no row of the decoder's table is another's."""
        return ()


@dataclass(frozen=True)
class Clipped:
    """How linear layers are stored. has_bounds: whether their inputs and outputs are kept between stored numbers."""

    role: Role
    has_bounds: bool

    def tensors(self, name: str, rows: int, columns: int) -> Iterator[TensorSpec]:
        """name: "audio_tower.layers.0.self_attn.q_proj"."""
        yield matrix(f"{name}.linear.weight", rows, columns, self.role)
        if self.has_bounds:
            for bound in _BOUNDS:
                stored = Derivation((SourceTensor(f"{name}.{bound}", (), is_bound=True),), _finite)
                yield TensorSpec.derived(f"{name}.{bound}", (1,), Role.NORM, stored)

    def linear(self, g: Graph, x: Value, name: str) -> Value:
        """[..., K] -> [..., N]."""
        if not self.has_bounds:
            return g.linear(x, f"{name}.linear.weight")
        return self._kept(g, g.linear(self._kept(g, x, f"{name}.input"), f"{name}.linear.weight"), f"{name}.output")

    def _kept(self, g: Graph, x: Value, name: str) -> Value:
        return g.maximum(g.minimum(x, g.weight(f"{name}_max")), g.weight(f"{name}_min"))


def _scaled(row: Floats) -> Floats:
    """A row of the table as the decoder reads it: times sqrt(D)."""
    return row * np.float32(row.size**0.5)


def _finite(stored: Floats) -> Floats:
    """[] -> [1]. A layer that was not measured has bounds of infinity, for which the largest number does as well."""
    return np.clip(stored, -_LARGEST, _LARGEST).reshape(1)
