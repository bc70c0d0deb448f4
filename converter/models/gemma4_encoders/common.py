"""What both encoders of Gemma 4 have: linear layers with bounds, and what brings features into the decoder.

Source: transformers models/gemma4/modeling_gemma4.py, Gemma4ClippableLinear and Gemma4MultimodalEmbedder.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph.ops import Graph, Value
from gemma_edge.converter.models.blocks import matrix
from gemma_edge.converter.tensors import Derivation, Overlay, Role, SourceTensor, TensorSpec

Floats = NDArray[np.float32]

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Embedder:
    """One modality's. prefix: of its tensors ("embed_audio."). width: of the features. text_width: of the decoder.

    The tokens that begin and end an image or a clip are text: their rows are the decoder's own.
    """

    prefix: str
    role: Role
    width: int
    text_width: int
    eps: float

    def tensors(self) -> Iterator[TensorSpec]:
        """What `embed` multiplies with."""
        yield matrix(self.prefix + "embedding_projection.weight", self.text_width, self.width, self.role)

    def embed(self, g: Graph, features: Value) -> Value:
        """[B, N, width] -> [B, N, text_width]."""
        return g.linear(g.rms_norm(features, None, self.eps), self.prefix + "embedding_projection.weight")

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
                stored = Derivation((SourceTensor(f"{name}.{bound}", ()),), _finite)
                yield TensorSpec.derived(f"{name}.{bound}", (1,), Role.NORM, stored)

    def linear(self, g: Graph, x: Value, name: str) -> Value:
        """[..., K] -> [..., N]."""
        if not self.has_bounds:
            return g.linear(x, f"{name}.linear.weight")
        return self._kept(g, g.linear(self._kept(g, x, f"{name}.input"), f"{name}.linear.weight"), f"{name}.output")

    def _kept(self, g: Graph, x: Value, name: str) -> Value:
        return g.maximum(g.minimum(x, g.weight(f"{name}_max")), g.weight(f"{name}_min"))


def _finite(stored: Floats) -> Floats:
    """[] -> [1]. A layer that was not measured has bounds of infinity, for which the largest number does as well."""
    return np.clip(stored, -_LARGEST, _LARGEST).reshape(1)
