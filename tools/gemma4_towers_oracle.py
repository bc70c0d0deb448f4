"""transformers' encoders of a Gemma 4 as the model uses them: from patches and mel frames to embeddings of tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel, Gemma4MultimodalEmbedder, Gemma4VisionModel

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint

Floats = NDArray[np.float32]
Weight = Callable[[str, torch.Size], torch.Tensor]
"""(Hugging Face name, "vision_tower.std_bias", shape) -> its values."""


@dataclass(frozen=True)
class Tower:
    """modality: "vision" or "audio". encoder, embedder: transformers'."""

    modality: str
    encoder: torch.nn.Module
    embedder: torch.nn.Module

    @classmethod
    def of(cls, modality: str, config: Mapping[str, Any], weight: Weight) -> "Tower":
        """From a whole config.json."""
        kinds: Mapping[str, Any] = {
            "vision": (transformers.Gemma4VisionConfig, Gemma4VisionModel),
            "audio": (transformers.Gemma4AudioConfig, Gemma4AudioModel),
        }
        make_config, make_model = kinds[modality]
        own, text = make_config(**config[f"{modality}_config"]), transformers.Gemma4TextConfig(**config["text_config"])
        own._attn_implementation = "eager"
        tower = cls(modality, make_model(own).float().eval(), Gemma4MultimodalEmbedder(own, text).eval())
        with torch.no_grad():
            for name, tensor in tower.tensors().items():
                tensor.copy_(weight(name, tensor.shape))
        return tower

    @classmethod
    def of_checkpoint(cls, modality: str, checkpoint: Checkpoint) -> "Tower":
        """In float32."""
        return cls.of(
            modality, checkpoint.config, lambda name, shape: torch.from_numpy(checkpoint.read(name)).reshape(shape)
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and stored buffers by Hugging Face name."""
        parts = ((f"{self.modality}_tower.", self.encoder), (f"embed_{self.modality}.", self.embedder))
        return {
            prefix + name: tensor for prefix, part in parts for name, tensor in part.state_dict(keep_vars=True).items()
        }

    def embed_image(self, patches: Floats, positions: NDArray[Any]) -> Floats:
        """[B, N, values], [B, N, 2] -> the embeddings of all images, one after the other [n, text width]."""
        with torch.no_grad():
            outputs = self.encoder(torch.from_numpy(patches), torch.from_numpy(positions).long())
            rows: Floats = self.embedder(outputs.last_hidden_state).numpy()
        return rows

    def embed_sound(self, mel: Floats, valid: NDArray[np.bool_]) -> Floats:
        """[B, T, F], true where there is sound [B, T] -> the embeddings of all clips, one after the other."""
        with torch.no_grad():
            outputs = self.encoder(torch.from_numpy(mel), torch.from_numpy(valid))
            rows: Floats = self.embedder(outputs.last_hidden_state[outputs.attention_mask]).numpy()
        return rows


def patch_positions(shapes: list[tuple[int, int]], patches: int) -> NDArray[np.int32]:
    """(column, row) of each patch of images [rows, columns], padded with -1: [B, patches, 2]."""
    positions = np.full((len(shapes), patches, 2), -1, np.int32)
    for image, (rows, columns) in zip(positions, shapes, strict=True):
        image[: rows * columns] = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    return positions
