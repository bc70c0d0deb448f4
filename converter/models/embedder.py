"""From an encoder's features to the decoder's embeddings, for images and audio alike.

Source: transformers models/gemma3n/modeling_gemma3n.py, Gemma3nMultimodalEmbedder. Features ("soft" tokens) and rows of
a small table of its own ("hard" tokens: end of image, end of audio) go through one projection. Hard rows are constants,
so they are computed at conversion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.graph.ops import Graph, Value
from gemma_edge.converter.models.blocks import matrix, vector
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.tensors import Derivation, Overlay, Role, SourceTensor, TensorSpec

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embedder:
    """One modality's.

    prefix: of its tensors ("embed_audio."). role: of its matrix. vocab_size: hard tokens; the first has the id
    vocab_offset. width: of the features. text_vocab_size, text_width: of the decoder's embedding table.
    """

    prefix: str
    role: Role
    vocab_size: int
    vocab_offset: int
    width: int
    text_vocab_size: int
    text_width: int
    eps: float

    def __post_init__(self) -> None:
        if self.vocab_offset + self.vocab_size > self.text_vocab_size:
            raise ConfigError(
                f"config.json: {self.prefix}embedding holds ids {self.vocab_offset} to "
                f"{self.vocab_offset + self.vocab_size - 1}, expected ids below vocab_size {self.text_vocab_size}; "
                "fix the checkpoint"
            )

    def tensors(self) -> Iterator[TensorSpec]:
        """What `embed` multiplies with."""
        yield vector(self.prefix + "soft_embedding_norm.weight", self.width)
        yield matrix(self.prefix + "embedding_projection.weight", self.text_width, self.width, self.role)

    def embed(self, g: Graph, features: Value) -> Value:
        """[B, T, width] -> [B, T, text_width]."""
        x = g.rms_norm(features, self.prefix + "soft_embedding_norm.weight", self.eps)
        return g.rms_norm(g.linear(x, self.prefix + "embedding_projection.weight"), None, self.eps)

    def hard_row(self, name: str, number: int) -> TensorSpec:
        """The embedding [text_width] of one hard token, counted from 0."""
        derivation = self._hard_rows(number, number + 1)
        return TensorSpec.derived(self.prefix + name, (self.text_width,), Role.NORM, derivation)

    def places(self) -> tuple[int, ...]:
        """None: tokens in whose place features go are behind those that have per-layer embeddings."""
        return ()

    def overlays(self) -> tuple[Overlay, ...]:
        """All hard tokens' embeddings, for the rows of their ids in the decoder's table: transformers never reads what
        is stored there. They are final, the table's scale is not theirs."""
        return (Overlay(self.vocab_offset, self.vocab_size, self._hard_rows(0, self.vocab_size)),)

    def _hard_rows(self, first: int, last: int) -> Derivation:
        sources = (
            SourceTensor(self.prefix + "embedding.weight", (self.vocab_size, self.width)),
            SourceTensor(self.prefix + "hard_embedding_norm.weight", (self.width,)),
            SourceTensor(self.prefix + "embedding_projection.weight", (self.text_width, self.width)),
        )
        return Derivation(sources, partial(_hard_rows, first=first, last=last, eps=self.eps))


def _hard_rows(table: Floats, norm: Floats, projection: Floats, first: int, last: int, eps: float) -> Floats:
    """Rows [first, last) embedded, [last - first, text_width]; in float64, so that every machine rounds alike."""
    x = _unit(table[first:last].astype(np.float64), eps) * norm
    return _unit(x @ projection.T.astype(np.float64), eps).astype(np.float32)


def _unit(x: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """Brought to a root mean square of 1 along the last axis."""
    y: NDArray[np.float64] = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return y
