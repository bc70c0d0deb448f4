"""timm's vision encoder of a Gemma 3n as transformers uses it: from pixels to embeddings of image tokens."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from tools.timm_beside import load_timm

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class VisionOracle:
    """encoder: transformers' wrapper of timm's. tokens: per image."""

    encoder: torch.nn.Module
    embedder: Gemma3nMultimodalEmbedder
    tokens: int

    @classmethod
    def of(cls, config: Mapping[str, Any], weight: Callable[[str, torch.Size], torch.Tensor]) -> "VisionOracle":
        """From a whole config.json. weight(name, shape): by Hugging Face name ("embed_vision.embedding.weight").

        Raises TimmMissingError.
        """
        load_timm()
        vision = transformers.Gemma3nVisionConfig(**deepcopy(config["vision_config"]))  # timm takes block_args apart
        text = transformers.Gemma3nTextConfig(**config["text_config"])
        encoder = transformers.AutoModel.from_config(vision).float().eval()
        oracle = cls(
            encoder, Gemma3nMultimodalEmbedder(vision, text).eval(), config.get("vision_soft_tokens_per_image", 256)
        )
        for name, parameter in oracle.parameters().items():
            parameter.data = weight(name, parameter.shape)
        return oracle

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> "VisionOracle":
        """In float32: the official encoder takes 1.2 GB."""
        return cls.of(checkpoint.config, lambda name, _shape: torch.from_numpy(checkpoint.read(name)))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """By Hugging Face name."""
        parts = (("vision_tower.", self.encoder), ("embed_vision.", self.embedder))
        return {prefix + name: parameter for prefix, part in parts for name, parameter in part.named_parameters()}

    def encode(self, images: Floats) -> Floats:
        """[B, 3, H, W] in [0, 1] -> features [B, N, 2048], before Gemma3nModel scales them."""
        with torch.no_grad():
            features = self.encoder(torch.from_numpy(images), do_pooling=False).last_hidden_state  # [B, C, h, w]
        rows: Floats = features.flatten(2).permute(0, 2, 1).numpy()
        return rows

    def embed(self, images: Floats) -> Floats:
        """[B, 3, H, W] -> [B, N, text width], as Gemma3nModel.get_image_features does."""
        features = torch.from_numpy(self.encode(images)) * self.embedder.multimodal_hidden_size**0.5
        with torch.no_grad():
            rows: Floats = self.embedder(inputs_embeds=features).numpy()
        return rows

    def hard(self, token: int) -> Floats:
        """The embedding of a token id of the modality, [text width]."""
        with torch.no_grad():
            embedding: Floats = self.embedder(input_ids=torch.tensor([[token]]))[0, 0].numpy()
        return embedding


def random_images(count: int, pixels: int, seed: int = 0) -> Floats:
    """Noise over a slope, [B, 3, H, W] in [0, 1]: no two places alike."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 0.5, pixels, dtype=np.float32)
    images: Floats = rng.random((count, 3, pixels, pixels), np.float32) * 0.5 + slope[:, None] * slope * 2
    return np.clip(images, 0, 1)
