"""Read one text with the checkpoint and with bundles side by side: scores, worst tokens, and a sample to dissect."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.evaluate import StreamingModel
from gemma_edge.converter.evaluate_machine import Hooks
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.verify.diagnose import Sample
from gemma_edge.converter.verify.report import Prediction, WorstToken
from gemma_edge.converter.verify.scores import Scores, TokenScore, log_softmax, score_token, top_tokens
from gemma_edge.converter.verify.subject import CachedRows, Subject
from gemma_edge.converter.verify.text import Windows

Float32 = NDArray[np.float32]

WORST_TOKENS = 20
_CONTEXT_TOKENS = 16
_SAMPLE_BYTES = 128 << 20  # of logits: 128 tokens of Gemma's vocabulary
_SAMPLE_TOKENS = 512
_TOP = 3


@dataclass(frozen=True)
class Reading:
    """scores: of each bundle. sample, cached: of the first bundle, over the first tokens of the first window."""

    scores: tuple[Scores, ...]
    worst: tuple[WorstToken, ...]
    sample: Sample
    cached: CachedRows


def read(model: StreamingModel, windows: Windows, subjects: Sequence[Subject], stage: Stage) -> Reading:
    """One pass over everything; a block of the checkpoint's logits and one row of each bundle's exist at a time."""
    on_bytes = stage("checkpoint", model.read_bytes(windows.size))
    per_token = sum(subject.decoder_bytes for subject in subjects)
    on_token = stage("bundle", windows.size * per_token)
    following = np.concatenate([windows[:, 1:], np.full((len(windows), 1), -1)], axis=1).reshape(-1)
    rows = zip(*(_rows(subject, windows) for subject in subjects), strict=True)
    scores: list[list[TokenScore]] = [[] for _ in subjects]
    worst = _Worst(windows, subjects[0])
    sample = sample_tokens(windows, model.model.config.vocab_size)
    sampled: list[Float32] = []
    cached: CachedRows = {}
    for first, block in model.run(windows, Hooks(on_bytes=on_bytes)):
        for row, expected in enumerate(block, first):
            found = next(rows)
            token = int(following[row])
            for sheet, logits in zip(scores, found, strict=True):
                sheet.append(score_token(expected, logits, None if token < 0 else token))
            worst.add(row, scores[0][-1].kl, expected, found[0])
            if len(sampled) < len(sample):
                sampled.append(found[0])
                if len(sampled) == len(sample):
                    cached = subjects[0].cached_rows()
            on_token(per_token)
    return Reading(
        tuple(Scores.of(sheet) for sheet in scores), worst.tokens(), Sample(sample, np.stack(sampled)), cached
    )


def sample_tokens(windows: Windows, vocab_size: int) -> list[int]:
    """The first tokens of the first window, as many as are looked at layer by layer."""
    count = max(2, min(_SAMPLE_TOKENS, _SAMPLE_BYTES // (4 * vocab_size)))
    tokens: list[int] = windows[0, :count].tolist()
    return tokens


def _rows(subject: Subject, windows: Windows) -> Iterator[Float32]:
    for window in windows:
        yield from subject.score(window.tolist())


class _Worst:
    """The positions with the largest KL so far, with what was predicted there."""

    def __init__(self, windows: Windows, subject: Subject) -> None:
        self._windows = windows
        self._subject = subject
        self._heap: list[tuple[float, int, tuple[Prediction, ...], tuple[Prediction, ...]]] = []

    def add(self, row: int, kl: float, expected: Float32, found: Float32) -> None:
        if len(self._heap) == WORST_TOKENS and kl <= self._heap[0][0]:
            return
        entry = (kl, -row, self._predictions(expected), self._predictions(found))
        heapq.heappush(self._heap, entry)
        if len(self._heap) > WORST_TOKENS:
            heapq.heappop(self._heap)

    def tokens(self) -> tuple[WorstToken, ...]:
        """The worst first."""
        return tuple(self._told(*entry) for entry in sorted(self._heap, key=lambda entry: entry[:2], reverse=True))

    def _told(
        self, kl: float, minus_row: int, reference: tuple[Prediction, ...], found: tuple[Prediction, ...]
    ) -> WorstToken:
        window, position = divmod(-minus_row, self._windows.shape[1])
        ids = self._windows[window].tolist()
        before = ids[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1]
        following = self._text([ids[position + 1]]) if position + 1 < len(ids) else None
        return WorstToken(window, position, kl, self._text(before), following, reference, found)

    def _predictions(self, logits: Float32) -> tuple[Prediction, ...]:
        probabilities = np.exp(log_softmax(logits))
        return tuple(Prediction(self._text([i]), float(probabilities[i])) for i in top_tokens(logits, _TOP))

    def _text(self, ids: Sequence[int]) -> str:
        """Ids behind the tokenizer's vocabulary, which a padded model has, are spelled as numbers."""
        tokenizer = self._subject.text_model.tokenizer
        parts = [tokenizer.piece(i).replace("\u2581", " ") if i < tokenizer.size else f"<{i}>" for i in ids]
        return "".join(parts)
