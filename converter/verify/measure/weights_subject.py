"""A file that this project's runtime does not run, as far as its weights and texts say what it would answer.

A format whose files are checkpoints as well is read as one: its numbers, weights, tokenizer, template and stop tokens,
all as the program that runs it will find them. The arithmetic is numpy's in float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

import numpy as np
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.litert.metadata import llm_metadata
from gemma_edge.converter.plan.plan import MEDIA_PREFIXES
from gemma_edge.converter.tokenizer.chat_template import bundle_template
from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.measure.subject import CachedRows
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.formats.model import Model as RunModel

Float32 = NDArray[np.float32]

NOT_CHECKED: Final = (
    "not checked: the program that runs this format, its rounding of inputs and its speed; what is measured are the "
    "stored weights in numpy, float32, and the file's tokenizer, template and stop tokens"
)


@dataclass(frozen=True)
class _Texts:
    """What text_model.TextModel asks of a bundle."""

    path: Path
    tokenizer: bytes
    said: bytes

    def metadata(self) -> LlmMetadata:
        """As a bundle of the same files would have it."""
        return LlmMetadata.FromString(self.said)

    def sentencepiece_model(self) -> bytes:
        """Serialised."""
        return self.tokenizer


class WeightsSubject:
    """See subject.Subject. path: a file, or a directory, that Checkpoint.open reads."""

    def __init__(self, path: Path, threads: int | None) -> None:
        """Raises what reading a checkpoint raises."""
        self.path = path
        self.bundle: RunModel | None = None
        self._source = Checkpoint.open(path)
        self._model = StreamingModel.open(self._source)
        ignored = (*MEDIA_PREFIXES, *self._model.model.config.unused_tensors())
        self._source.match(self._model.model.tensors.values(), ignored)
        self.text_model = TextModel(cast(RunModel, _texts(path, self._source, self._model)))
        self.folder: Path | None = None
        self.threads = threads or 1
        self.decoder_threads = self.threads
        self.decoder_bytes = sum(tensor.nbytes for tensor in self._source.tensors.values())
        self.not_checked: tuple[str, ...] = (NOT_CHECKED,)

    @property
    def name(self) -> str:
        """For people."""
        return self.path.name or self.path.resolve().name

    def check(self, window_tokens: int, vocab_size: int) -> None:
        """Raises VerifyError where a window does not fit the model or the vocabularies differ."""
        config = self._model.model.config
        if config.max_context_tokens < window_tokens:
            raise VerifyError(
                f"{self.name}: its context holds {config.max_context_tokens} tokens, a window has {window_tokens}; "
                "give a smaller --window"
            )
        if config.vocab_size != vocab_size:
            raise VerifyError(
                f"{self.name}: a vocabulary of {config.vocab_size} tokens, the checkpoint has {vocab_size}; "
                "give the checkpoint that it was converted from"
            )

    def score(self, token_ids: Sequence[int]) -> Iterator[Float32]:
        """The logits [V] after each token of a text of its own. Raises VerifyError where they are no numbers."""
        position = 0
        for _, logits in self._model.run(np.array([token_ids])):
            for row in logits:
                position += 1
                if not np.isfinite(row).all():
                    raise VerifyError(
                        f"{self.name}: the logits after {position} tokens are not finite; convert the checkpoint "
                        "again, to a higher precision if the checkpoint verifies"
                    )
                yield row

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The most likely continuation, stop tokens included; every token takes a run over all before it."""
        ids = list(token_ids)
        for _ in range(count):
            hidden = self._model.hidden(np.array([ids]))[-1:]
            [(_, logits)] = self._model.logits(hidden)
            ids.append(int(logits[0].argmax()))
        return ids[len(token_ids) :]

    def cached_rows(self) -> CachedRows:
        """None: nothing but numpy ran."""
        return {}

    def reply(self, message: str, max_output_tokens: int) -> str:  # noqa: ARG002  as a bundle has it
        """Raises VerifyError: replies come from the program that runs the format."""
        raise VerifyError(f"{self.name}: is not run here, so --prompts has no replies to look at; leave it out")

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _texts(path: Path, source: Checkpoint, model: StreamingModel) -> _Texts:
    side, config = source.side_path, model.model.config
    template = bundle_template(side)
    tokenizer = sentencepiece_model(side, config.vocab_size, template.written)
    said = llm_metadata(side, model.model.names.litert, config.max_context_tokens, tokenizer, template=template)
    return _Texts(path, tokenizer, said)
