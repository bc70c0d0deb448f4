"""A bundle, or an ONNX directory, as it runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.runtime.chat.conversation import Conversation
from gemma_edge.runtime.chat.options import ConversationOptions
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.executors.open import open_decoder, several_models
from gemma_edge.runtime.executors.placement import cache_folder
from gemma_edge.runtime.formats.model import Model, open_model
from gemma_edge.runtime.kv.scheduler import Scheduler
from gemma_edge.runtime.kv.sequence import TokenSequence
from gemma_edge.runtime.kv.slots import SlotPool
from gemma_edge.runtime.settings import default_threads, usable_cores
from gemma_edge.runtime.text.sampler import SamplerConfig

Float32 = NDArray[np.float32]
CachedRows = dict[int, tuple[Float32, Float32]]  # by layer: keys and values of the last n positions, [n, K, E]


class Subject(Protocol):
    """What is verified, whatever it is stored as.

    bundle: what our runtime opens, if it does. folder: for large files, if there is one. decoder_bytes: read for a
    token. not_checked: what nobody looks at.
    """

    path: Path
    bundle: Model | None
    text_model: TextModel
    folder: Path | None
    threads: int
    decoder_threads: int
    decoder_bytes: int
    not_checked: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""

    def check(self, window_tokens: int, vocab_size: int) -> None:
        """Raises VerifyError where a window does not fit or the vocabularies differ."""

    def score(self, token_ids: Sequence[int]) -> Iterator[Float32]:
        """The logits [V] after each token of a text of its own."""

    def cached_rows(self) -> CachedRows:
        """What the layers wrote into their caches for the text scored last."""

    def reply(self, message: str, max_output_tokens: int) -> str:
        """The greedy answer to one message."""


class BundleSubject:
    """A bundle or an ONNX directory: the decoder in our runtime, and what the bundle says of tokens and template."""

    def __init__(self, path: Path, threads: int | None, cache_dir: str | None, model: str | None = None) -> None:
        """model: which, where the bundle holds several and this among them.

        Raises what opening a bundle raises: BundleError, OnnxDirectoryError, ExecutorError.
        """
        self.path = path
        self.bundle: Model | None = (bundle := open_model(path))
        self.text_model = TextModel(bundle)
        self.folder = folder = cache_folder(cache_dir, path, prefer_disk=True)  # of packed weights
        self.threads = threads or default_threads(None)
        self.decoder_threads = threads = threads or max(1, min(self.threads, usable_cores() // 2))
        self._decoder = open_decoder(bundle, threads, folder)
        self._slot = self._decoder.new_slot()
        self._several = several_models(self._decoder)
        self._model = model if self._several is not None and model in self._several.models else None
        if self._several is not None and self._model is not None:
            self._slot = self._several.switched(self._slot, self._model)
        self.decoder_bytes = bundle.decoder_bytes
        self.not_checked: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return self.path.name or self.path.resolve().name  # "."

    def check(self, window_tokens: int, vocab_size: int) -> None:
        """Raises VerifyError where a window does not fit the context or the vocabularies differ."""
        if self._slot.context_tokens < window_tokens:
            raise VerifyError(
                f"{self.name}: its context holds {self._slot.context_tokens} tokens, a window has {window_tokens}; "
                "give a smaller --window"
            )
        if self._decoder.vocab_size != vocab_size:
            raise VerifyError(
                f"{self.name}: a vocabulary of {self._decoder.vocab_size} tokens, the checkpoint has {vocab_size}; "
                "give the checkpoint that the bundle was converted from"
            )

    def score(self, token_ids: Sequence[int]) -> Iterator[Float32]:
        """The logits [V] after each token of a text of its own, decoded one by one.

        Raises VerifyError where they are no numbers, with the layer that shows it first.
        """
        self._slot.reset()
        for position, token in enumerate(token_ids):
            logits = self._slot.decode(int(token))
            if not np.isfinite(logits).all():
                raise VerifyError(
                    f"{self.name}: the logits after {position + 1} tokens are not finite, {self._first_not_finite()}; "
                    "convert the checkpoint again, to a higher precision if the checkpoint verifies"
                )
            yield logits

    def cached_rows(self) -> CachedRows:
        """What the layers wrote into their caches for the text scored last: intermediate values of what really ran."""
        return self._slot.cached_rows()

    def _first_not_finite(self) -> str:
        for layer, rows in sorted(self.cached_rows().items()):
            if not all(np.isfinite(part).all() for part in rows):
                before = f"{layer - 1} or {layer}" if layer else "0"
                return (
                    f"the first NaN or infinity in the KV cache is layer {layer}'s: the overflow is in layer {before}"
                )
        return "and the KV cache is finite: the overflow is after the last layer that has a cache"

    def reply(self, message: str, max_output_tokens: int) -> str:
        """The greedy answer to one message, through the bundle's chat template and stop tokens."""
        scheduler, pool = Scheduler(), SlotPool(self._decoder, None, 1, several=self._several)
        try:
            if self._model is not None:
                pool.use(self._model)
            sequence = TokenSequence(scheduler, pool)
            options = ConversationOptions(sampler_config=SamplerConfig(top_k=1))
            with Conversation(self.text_model, sequence, options) as conversation:
                return str(conversation.send_message(message, max_output_tokens=max_output_tokens))
        finally:
            scheduler.close()
            pool.close()

    def close(self) -> None:
        self._slot.close()
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
