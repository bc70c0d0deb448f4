"""Choosing the next token: top-k, then top-p, then a draw with a seeded generator.

Order, arithmetic and generator are LiteRT-LM's (runtime/components/sampling_cpu_util.cc and top_p_cpu_sampler.cc at
0.18.1), so the same seed gives not only the same text here every time, but the text that litert_lm gives (with top_k up
to 1024; above that its candidates are unsorted and its sums are rounded in another order).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from litert_lm_builder.runtime.proto.sampler_params_pb2 import SamplerParameters
from numpy.typing import NDArray

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.text.logits import Logits

_GEMMAS_TOP_K = 64  # of generation_config.json, Gemma 3 and 3n
_EPSILON = float(np.finfo(np.float32).eps)


class SamplerError(GemmaEdgeError, ValueError):
    """A sampling setting is out of range, or leaves no token. Also a ValueError, which is what litert_lm raises."""


@dataclass(frozen=True)
class SamplerConfig:
    """How the next token is drawn. None means litert_lm's default for a given config, named in each line.

    top_k: candidates kept, best first (1, greedy; 64 where a temperature or top_p is given, which litert_lm ignores).
    top_p: of those, the fewest whose probabilities add up to this (0.95).
    temperature: divides the logits; 0 is greedy (1.0).
    seed: of the generator, which then runs on over all turns (0).
    """

    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k <= 0:
            raise SamplerError(f"top_k is {self.top_k}, expected at least 1; use top_k=1 for greedy text")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise SamplerError(f"top_p is {self.top_p}, expected 0 to 1; use top_p=1 to keep every candidate")
        if self.temperature is not None and not self.temperature >= 0:
            raise SamplerError(f"temperature is {self.temperature}, expected 0 or more; use top_k=1 for greedy text")

    @property
    def candidates(self) -> int:
        """top_k, or what it is by default: a temperature alone draws, as everywhere but in litert_lm."""
        if self.top_k is not None:
            return self.top_k
        return 1 if self.temperature is None and self.top_p is None else _GEMMAS_TOP_K

    @classmethod
    def of_bundle(cls, parameters: SamplerParameters) -> "SamplerConfig":
        """The bundle's own default: LlmMetadata.sampler_params; greedy where a bundle has none."""
        if parameters.type in (SamplerParameters.TYPE_UNSPECIFIED, SamplerParameters.GREEDY):
            return cls(top_k=1)
        return cls(
            top_k=parameters.k or 1,
            top_p=parameters.p if parameters.type == SamplerParameters.TOP_P else 1.0,
            temperature=parameters.temperature,
            seed=parameters.seed,
        )


class Sampler:
    """Draws token ids from logits. Its generator is the only state."""

    def __init__(self, config: SamplerConfig) -> None:
        self._top_k = config.candidates
        self._top_p = 0.95 if config.top_p is None else config.top_p
        # A temperature of 0 leaves one candidate with a probability above 0, as litert_lm's epsilon does.
        self._temperature = max(1.0 if config.temperature is None else config.temperature, _EPSILON)
        self._random = _MinStd(config.seed or 0)

    @property
    def state(self) -> int:
        """Of the generator: what the next draws follow from."""
        return self._random.state

    @state.setter
    def state(self, state: int) -> None:
        self._random.state = state

    def copy(self) -> "Sampler":
        """One that draws what this one would, without moving it."""
        copied = copy.copy(self)
        copied._random = copy.copy(self._random)
        return copied

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the likeliest token, and needs no others."""
        return self._top_k == 1

    def pick(self, logits: Logits) -> int:
        """One token id. logits: float32 [V]; -inf marks what may not be chosen, the array is not changed.

        Where one is NaN or infinite, that one; where all are -inf, some token.
        """
        if self.is_greedy:
            return int(np.argmax(logits))
        return self._pick(logits, _likely(logits, min(self._top_k, len(logits))))

    def pick_allowed(self, logits: Logits, allowed: Callable[[NDArray[np.intp]], NDArray[np.bool_]]) -> int | None:
        """What `pick` gives of the logits [V] with -inf at all that is not allowed; they are not changed.

        allowed: whether each of some tokens is, which is asked of the likeliest alone. None: of them too few are, and
        nothing is drawn.
        """
        likely = _likely(logits, min(self._top_k * 9 // 8 + _SPARE, len(logits)))
        likely = likely[allowed(likely)]
        return self._pick(logits, likely) if len(likely) >= self._top_k else None

    def _pick(self, logits: Logits, likely: NDArray[np.intp]) -> int:
        """One of the top_k of some logits. likely: which, rising, [n]."""
        if len(likely) == 0:
            return 0
        values = logits[likely]
        best = -np.sort(-values)[: self._top_k]  # [k]
        if not best[0] < np.inf:
            return int(likely[0])
        weights = np.exp((best - best[0]) / np.float32(self._temperature))
        probabilities = weights * (np.float32(1) / weights.cumsum()[-1])  # float32 [k], summed in order like C++
        cumulative = probabilities.cumsum(dtype=np.float64)
        # The first candidate that reaches top_p is still in. Rounding may keep the whole sum just below it.
        last = min(int(cumulative.searchsorted(self._top_p)), len(cumulative) - 1)
        drawn = self._random.uniform() * cumulative[last]
        rank = int(cumulative[: last + 1].searchsorted(drawn))
        # Only of what was drawn is it asked which token that is: of equal logits the lower index comes first.
        equal = np.flatnonzero(values == best[rank])
        return int(likely[equal[rank - int((best == best[rank]).argmax())]])


_SPARE = 32
"""How many more are looked at for those that are not allowed: of Gemma 3 270M within JSON strings 0 to 14 of 64."""
_COLUMNS = 4096
"""Every so many logits are of one column: of Gemma's 262,144 each has 64, and numpy finds the maxima of all at once."""


def _likely(logits: Logits, k: int) -> NDArray[np.intp]:
    """Indices of the k largest and of some more, rising: of all that reach some bound; none that is -inf.

    The k-th largest of the maxima of some groups is a bound that at least k logits reach, and hardly more do: nothing
    is sorted but what does. One that is NaN or infinite is alone.
    """
    groups = max(512, 1 << (k * 4 // 3).bit_length())
    if len(logits) <= groups:
        is_finite = logits.max(initial=-np.inf) < np.inf
        return np.flatnonzero(logits > -np.inf) if is_finite else np.array([logits.argmax()])
    columns = max(_COLUMNS, groups)
    rest = len(logits) % columns
    rows = logits[rest:].reshape(-1, columns)
    maxima = rows.max(axis=0, initial=-np.inf)  # [columns]
    if rest:
        maxima[:rest] = np.maximum(maxima[:rest], logits[:rest])
    highest = maxima.reshape(-1, groups).max(axis=0)  # [groups]
    if not highest.max() < np.inf:
        return np.array([logits.argmax()])
    possible = highest[highest > -np.inf]  # partition is slow among many equals
    if len(possible) < k:
        return np.flatnonzero(logits > -np.inf)
    bound = np.partition(possible, len(possible) - k)[len(possible) - k]
    at = np.flatnonzero(maxima >= bound)
    if 16 * len(at) > columns:
        return np.flatnonzero(logits >= bound)  # quicker than looking through so many columns
    row, column = np.divmod(np.flatnonzero(rows.take(at, axis=1) >= bound), len(at))
    found: NDArray[np.intp] = rest + row * columns + at[column]
    return np.concatenate([np.flatnonzero(logits[:rest] >= bound), found]) if rest else found


class _MinStd:
    """C++'s std::minstd_rand, libc++'s default_random_engine, with its uniform_real_distribution<double>(0, 1)."""

    _MODULUS = 2**31 - 1

    def __init__(self, seed: int) -> None:
        self.state = seed % 2**64 % self._MODULUS or 1  # a negative seed is converted to 64 bits unsigned

    def uniform(self) -> float:
        """The next draw from [0, 1): 53 bits need two values of the engine, the first one the less significant."""
        low, high = self._next() - 1, self._next() - 1
        values = self._MODULUS - 1  # the engine gives 1 .. modulus - 1
        return (low + high * float(values)) / float(values) ** 2

    def _next(self) -> int:
        self.state = self.state * 48271 % self._MODULUS
        return self.state


def log_probability(logits: Logits, token_id: int) -> float:
    """The natural logarithm of a token's softmax probability, in float64."""
    shifted = logits.astype(np.float64) - float(np.max(logits))
    return float(shifted[token_id] - np.log(np.sum(np.exp(shifted))))
