"""A bundle's drafter: a small model that guesses from a slot's hidden state, and reads its keys and values.

It keeps nothing of its own, and copies none of the caches: each slot binds them as inputs. All guesses of a round are
made at the position of the token that is certain, the first from that token's embedding and the decoder's hidden state
before it, each later one from the guess before and the state that came with it.
Source: LiteRT-LM, runtime/executor/llm_litert_mtp_drafter.cc; names are those of its section.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.library import BoundSignature, TensorType, aligned_zeros
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
from gemma_edge.runtime.executors.litert.weight_cache import compile_section
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.media.soft_tokens import place_soft_rows

ACTIVATIONS = "activations"
"""Hidden states: of the decoder behind its last norm, [1, T, D]; what the drafter takes has an embedding before it."""

_FLOAT = np.dtype(np.float32)


class DrafterSection:
    """The compiled section, and the arrays of a call, which slots use one at a time.

    Args:
        section: where it lies.
        threads: cores XNNPACK may use.
        cache_dir: as of LitertDecoder.
        embedder: the decoder's, rows of D values.
        caches: what a slot keeps.
        vocabulary: V.

    Raises:
        BundleMismatchError: it takes or gives something else.
    """

    def __init__(
        self,
        section: FileRange,
        threads: int,
        cache_dir: Path | None,
        embedder: EmbeddingTable,
        caches: Mapping[str, TensorType],
        vocabulary: int,
    ) -> None:
        self._embedder = embedder
        self._model, self.weight_cache = compile_section(section, threads, cache_dir)
        try:
            width = embedder.width
            own = {
                ACTIVATIONS: TensorType((1, 1, 2 * width), _FLOAT),
                "input_pos": TensorType((1,), np.dtype(np.int32)),
            }
            made = {
                "logits": TensorType((1, 1, vocabulary), _FLOAT),
                "projected_activations": TensorType((1, 1, width), _FLOAT),
            }
            self._name, signature = next(iter(self._model.signatures.items()), ("", None))
            if (
                signature is None
                or signature.outputs != made
                or not signature.inputs.items() <= {**own, **caches}.items()
            ):
                raise BundleMismatchError(
                    f"{section.path}: its drafter takes or gives other tensors than this decoder's; convert the "
                    "checkpoint again"
                )
            self._reads = signature.inputs.keys() - own.keys()
            self._arrays = {name: aligned_zeros(tensor) for name, tensor in (own | made).items()}
        except BaseException:
            self.close()
            raise

    def bind(self, caches: Mapping[str, NDArray[Any]]) -> "SlotDrafter":
        """Of a slot, whose caches it reads where they lie."""
        run = self._model.bind(self._name, self._arrays | {name: caches[name] for name in self._reads})
        return SlotDrafter(run, self._arrays, self._embedder)

    def close(self) -> None:
        """Release it. Closing twice is fine."""
        self._model.close()


class SlotDrafter:
    """Guesses of what comes in one slot. Made by `DrafterSection.bind`."""

    def __init__(self, run: BoundSignature, arrays: Mapping[str, NDArray[Any]], embedder: EmbeddingTable) -> None:
        self._run, self._embedder, self._position = run, embedder, arrays["input_pos"]
        width = embedder.width
        self._embedding = arrays[ACTIVATIONS].reshape(2, width)[:1]
        self._hidden = arrays[ACTIVATIONS].reshape(2, width)[1]
        self._logits, self._projected = arrays["logits"].reshape(-1), arrays["projected_activations"].reshape(width)

    def guesses(self, token_id: int, hidden: NDArray[np.float32], position: int, n: int) -> list[int]:
        """The n likeliest tokens after this one, which is to stand at `position`. hidden: [D], of the token before."""
        found: list[int] = []
        self._position[:] = position
        self._hidden[:] = hidden
        for _ in range(n):
            self._embedder.lookup([token_id], self._embedding)
            place_soft_rows([token_id], self._embedding)
            self._run()
            token_id = int(self._logits.argmax())
            self._hidden[:] = self._projected
            found.append(token_id)
        return found

    def close(self) -> None:
        """It guesses no more. Closing twice is fine."""
        self._run.close()
