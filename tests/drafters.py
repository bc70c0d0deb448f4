"""Pairs of a tiny Gemma 4 and its assistant, and what transformers has the assistant guess."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gemma_edge.converter.convert import convert
from tools.tiny import write_tiny
from tools.tiny_drafter import write_drafter

PROMPTS = (
    "Once upon a time", "The sun was", "Tom and Lily went to the park", "hello", "One day a big bear", "She said",
    "A cat and a mouse", "In the garden", "My mother", "Two boys played",
)  # fmt: skip

NAME = "gemma4-e2b-pattern"
CONTEXT_TOKENS, PREFILL_TOKENS, DRAFTS = 128, (8, 32), 3


@dataclass(frozen=True)
class Pair:
    """A model and its assistant: as transformers has them, as files, and as a bundle in float32."""

    model: Any
    assistant: Any
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "pair.litertlm"


OPTIONS: Any = {"context": CONTEXT_TOKENS, "prefill": PREFILL_TOKENS, "spans": (), "measure": False}


def made(folder: Path, clusters: tuple[int, int] | None) -> Pair:
    assistant = write_drafter(NAME, folder / "assistant", clusters=clusters)
    pair = Pair(write_tiny(NAME, folder / "model"), assistant, folder)
    convert("custom-fp32", folder / "model", pair.bundle, drafter=folder / "assistant", **OPTIONS)
    return pair


@dataclass(frozen=True)
class Guesses:
    """Of one round. activations: the model's, [1, 1, D]. logits: [DRAFTS, V]. projected: [DRAFTS, D]."""

    activations: NDArray[np.float32]
    logits: NDArray[np.float32]
    projected: NDArray[np.float32]

    @property
    def tokens(self) -> list[int]:
        return [int(row.argmax()) for row in self.logits]


def expected(pair: Pair, ids: list[int]) -> Guesses:
    """As transformers' SinglePositionMultiTokenCandidateGenerator guesses behind ids, the last of which is not run."""
    with torch.no_grad():
        seen = pair.model(torch.tensor([ids[:-1]]), output_hidden_states=True, return_shared_kv_states=True)
        hidden, token, logits, projected = seen.hidden_states[-1][:, -1:], ids[-1], [], []
        activations = hidden.numpy()
        for _ in range(DRAFTS):
            embedding = pair.model.get_input_embeddings()(torch.tensor([[token]]))
            found = pair.assistant(
                inputs_embeds=torch.cat([embedding, hidden], -1),
                position_ids=torch.tensor([[len(ids) - 1]]),
                shared_kv_states=dict(seen.shared_kv_states),
            )
            hidden, token = found.last_hidden_state, int(found.logits.argmax())
            logits.append(found.logits[0, 0].numpy())
            projected.append(hidden[0, 0].numpy())
    return Guesses(activations, np.stack(logits), np.stack(projected))
