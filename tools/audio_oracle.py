"""transformers' audio encoder of a Gemma 3n as the model uses it: from mel frames to embeddings of audio tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Gemma3nAudioConfig, Gemma3nAudioEncoder, Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class AudioOracle:
    """encoder, embedder: transformers'. embeddings: N, audio tokens per clip. padding_id: the token of silence."""

    encoder: Gemma3nAudioEncoder
    embedder: Gemma3nMultimodalEmbedder
    embeddings: int
    padding_id: int

    @classmethod
    def of(cls, config: Mapping[str, Any], weight: Callable[[str, torch.Size], torch.Tensor]) -> "AudioOracle":
        """From a whole config.json. weight(name, shape): by Hugging Face name ("embed_audio.embedding.weight")."""
        audio, text = Gemma3nAudioConfig(**config["audio_config"]), Gemma3nTextConfig(**config["text_config"])
        encoder, embedder = Gemma3nAudioEncoder(audio).eval(), Gemma3nMultimodalEmbedder(audio, text).eval()
        oracle = cls(encoder, embedder, config["audio_soft_tokens_per_image"], text.vocab_size - 1)
        for name, parameter in oracle.parameters().items():
            parameter.data = weight(name, parameter.shape)
        return oracle

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> "AudioOracle":
        """In float32; the official encoder takes 2.7 GB, and twice that while it is loaded."""
        return cls.of(checkpoint.config, lambda name, _shape: torch.from_numpy(checkpoint.read(name)))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """By Hugging Face name."""
        parts = (("audio_tower.", self.encoder), ("embed_audio.", self.embedder))
        return {prefix + name: parameter for prefix, part in parts for name, parameter in part.named_parameters()}

    def encode(self, mel: Floats, valid: Mask) -> tuple[Floats, Mask]:
        """Frames [B, T, F], true where there is sound [B, T] -> features [B, T / 16, D], valid [B, T / 16]."""
        with torch.no_grad():
            outputs = self.encoder(torch.from_numpy(mel), torch.from_numpy(~valid))
        return outputs.last_hidden_state.numpy(), ~outputs.audio_mel_mask.numpy()

    def embed(self, mel: Floats, valid: Mask) -> Floats:
        """[B, T, F], [B, T] -> [B, N, text width], as Gemma3nModel.forward puts it in the place of audio tokens."""
        features, found = self.encode(mel, valid)
        with torch.no_grad():
            soft = self.embedder(inputs_embeds=torch.from_numpy(features)).numpy()
        embeddings = np.tile(self.hard(self.padding_id), (len(mel), self.embeddings, 1))
        embeddings[:, : soft.shape[1]][found] = soft[found]
        return embeddings

    def hard(self, token: int) -> Floats:
        """The embedding of a token id of the modality, [text width]."""
        with torch.no_grad():
            embedding: Floats = self.embedder(input_ids=torch.tensor([[token]]))[0, 0].numpy()
        return embedding


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """|found - expected| / |expected|."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def valid_frames(count: int, of: int) -> Mask:
    """True for the first `count`, [1, of]."""
    mask: Mask = (np.arange(of) < count)[None]
    return mask


def loud_and_quiet(clips: int, frames: int, bins: int, seed: int = 0) -> Floats:
    """Random mel frames [B, T, F] as sounds have them: most energy low, and loudness that comes and goes."""
    rng = np.random.default_rng(seed)
    tilt = np.linspace(-2, -7, bins, dtype=np.float32)
    loudness = 2 * np.sin(np.arange(frames, dtype=np.float32) / 9)
    mel: Floats = rng.standard_normal((clips, frames, bins), np.float32) + tilt + loudness[:, None]
    return mel
