"""Read one text with the checkpoint and with bundles side by side: scores, worst tokens, and a sample to look into."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.converter.verify.find.diagnose import Sample
from gemma_edge.converter.verify.find.layers import Comparison, Meter, compare_layers, weights_kl
from gemma_edge.converter.verify.measure.blas import spare_cores
from gemma_edge.converter.verify.measure.decoding import Decoding
from gemma_edge.converter.verify.measure.heap import give_back
from gemma_edge.converter.verify.measure.scores import Scores, TokenScore, log_softmax, score_token, top_tokens
from gemma_edge.converter.verify.measure.subject import Subject
from gemma_edge.converter.verify.measure.text import Windows
from gemma_edge.converter.verify.measure.walks import Walks
from gemma_edge.converter.verify.show.report import Prediction, WorstToken
from gemma_edge.runtime.settings import usable_cores

Float32 = NDArray[np.float32]

WORST_TOKENS = 20
_CONTEXT_TOKENS = 16
_BLOCK_BYTES = 256 << 20  # of the checkpoint's logits: the head is read once for each
_SAMPLE_BYTES = 128 << 20  # of logits: 128 tokens of Gemma's vocabulary
_SAMPLE_TOKENS = 512
_TOP = 3


@dataclass(frozen=True)
class Reading:
    """scores: of each bundle. The rest is of the first bundle; comparison, sample, hidden and left are of its sample.

    hidden: what the head reads with the bundle's weights, [S, D]. left: what that leaves of the logits' difference to
    the bundle's own, see Sample.distance.
    """

    scores: tuple[Scores, ...]
    worst: tuple[WorstToken, ...]
    sample: Sample
    comparison: Comparison
    hidden: Float32
    left: float


def read(
    source: Checkpoint,
    model: StreamingModel,
    stored: BundleWeights | None,
    windows: Windows,
    subjects: Sequence[Subject],
    stage: Stage,
) -> Reading:
    """One pass over everything; a block of the checkpoint's logits and one row of each bundle's exist at a time.

    stored: the first bundle's weights; None where they cannot be read.
    """
    vocab_size = model.model.config.vocab_size
    block = max(1, _BLOCK_BYTES // (4 * vocab_size))
    blocks = -(-windows.size // block)
    on_bytes = stage("checkpoint", model.body_bytes + blocks * model.head_bytes(1))
    per_token = sum(subject.decoder_bytes for subject in subjects)
    on_token = stage("bundle", windows.size * per_token)
    sample = sample_tokens(windows, vocab_size)
    meter = None if stored is None else Meter(stored, model.graph.tensors)
    walks = Walks(source, model, meter, sample, on_bytes)
    taken = max(subject.decoder_threads for subject in subjects)
    with (
        Decoding(subjects, windows, len(sample), vocab_size, lambda: on_token(per_token)) as decoding,
        spare_cores(usable_cores(), taken),
    ):
        walked = walks.body(windows)
        give_back()  # a layer's activations: blocks of logits follow
        sheets = _Sheets(windows, subjects)
        found = decoding.rows()
        for first, logits, own in walks.head(walked, block):
            if first == 0:
                sampled, cached = decoding.sample()
                left = Sample(sample, sampled).distance([(0, own)])
                kl = None if meter is None else weights_kl(logits[: len(own)], own)
            del own
            for row, expected in enumerate(logits, first):
                sheets.add(row, expected, next(found))
            del logits, expected  # before the next block
    comparison = Comparison(
        () if meter is None else meter.reports(),
        compare_layers(walked, cached),
        () if meter is None else tuple(meter.offset_norms),
        kl,
    )
    return Reading(sheets.scores(), sheets.worst.tokens(), Sample(sample, sampled), comparison, walked.own, left)


def sample_tokens(windows: Windows, vocab_size: int) -> list[int]:
    """The first tokens of the first window, as many as are looked at layer by layer."""
    count = max(2, min(_SAMPLE_TOKENS, _SAMPLE_BYTES // (4 * vocab_size)))
    tokens: list[int] = windows[0, :count].tolist()
    return tokens


class _Sheets:
    """The scores of all bundles, in the making."""

    def __init__(self, windows: Windows, subjects: Sequence[Subject]) -> None:
        ends = np.full((len(windows), 1), -1)
        self._following = np.concatenate([windows[:, 1:], ends], axis=1).reshape(-1).tolist()
        self._sheets: list[list[TokenScore]] = [[] for _ in subjects]
        self.worst = _Worst(windows, subjects[0])

    def add(self, row: int, expected: Float32, found: Float32) -> None:
        """Logits of one position: the checkpoint's [V], and those of all bundles [bundles, V]."""
        token = self._following[row]
        for sheet, logits in zip(self._sheets, found, strict=True):
            sheet.append(score_token(expected, logits, None if token < 0 else token))
        self.worst.add(row, self._sheets[0][-1].kl, expected, found[0])

    def scores(self) -> tuple[Scores, ...]:
        """Of each bundle."""
        return tuple(Scores.of(sheet) for sheet in self._sheets)


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
