"""Replies that keep to a JSON schema or a regular expression: llguidance says which tokens may come next.

litert_lm hands llguidance the pieces as SentencePiece stores them, with U+2581 for a space and "<0xE2>" for a byte.
Here it gets the bytes that the pieces stand for, so spaces and rare characters match what a schema or pattern says.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.text.json_schema import checker, prepared
from gemma_edge.runtime.text.logits import Logits
from gemma_edge.runtime.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

# Without a bound a model can go on with blanks for ever. 16 are a new line and seven levels of indentation.
_JSON_OPTIONS = {"whitespace_pattern": "[ \\t\\r\\n]{0,16}"}

# Which tokens may stand within any string of at least 30 more characters, llguidance then knows beforehand: of Gemma's
# vocabulary a mask within a string with maxLength takes 0.1 ms, not 4. All of its slices would take 63 MB, this one 15.
_SLICES = [r'[^"\\\x00-\x1F\x7F]{1,30}']

# Within the last 30 characters it does take 3 ms. After a mask that slow, each of the likeliest tokens is asked about.
_SLOW_MASK_S = 0.001


class ConstraintError(GemmaEdgeError, ValueError):
    """The schema or pattern cannot be used. Also a ValueError, which is what litert_lm raises."""


class LiteRtLmConstraintProviderType(IntEnum):
    """Who keeps replies to a format; the name and the values are litert_lm's."""

    NONE = 0
    LL_GUIDANCE = 1


@dataclass(frozen=True)
class ConstrainedDecodingConfig:
    """Whether a conversation may constrain its replies."""

    enable: bool = True
    provider: LiteRtLmConstraintProviderType | None = None


@dataclass(frozen=True)
class ResponseFormat:
    """What a reply must look like; made with `json` or `regex`."""

    class Type:
        NONE: ClassVar[int] = 0
        REGEX: ClassVar[int] = 1
        JSON_OBJECT: ClassVar[int] = 2

    type: int
    schema_or_pattern: str
    lenient: bool = False

    @classmethod
    def json(cls, schema: dict[str, Any] | bool | str, *, lenient: bool = False) -> "ResponseFormat":
        """JSON that a JSON schema accepts. schema: the schema, as a dict or as JSON text.

        lenient: takes schemas with words that no grammar has (`not`, `if`, `contains`, ...). A reply is then checked
        when it is complete, and a ConstraintError where it breaks them. `uniqueItems` and `oneOf` are always so.
        """
        if isinstance(schema, dict | bool):
            return cls(cls.Type.JSON_OBJECT, json.dumps(schema), lenient)
        try:
            found = json.loads(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConstraintError(f"the JSON schema is not JSON: {error}; pass a dict or valid JSON text") from error
        if not isinstance(found, dict | bool):
            raise ConstraintError(f"the JSON schema is {type(found).__name__}, expected an object; pass a dict")
        return cls(cls.Type.JSON_OBJECT, schema, lenient)

    @classmethod
    def regex(cls, pattern: str) -> "ResponseFormat":
        """Text that a regular expression matches as a whole (Rust's regex syntax, without look-around)."""
        return cls(cls.Type.REGEX, pattern)


class Constraint:
    """One reply's constraint. Narrow the logits, draw, accept what was drawn; repeat."""

    def __init__(self, matcher: Any, tokenizer: Any, check: Callable[[str], str | None] = lambda _text: None) -> None:
        """matcher, tokenizer: llguidance.LLMatcher and LLTokenizer. check: of a complete reply, what is wrong with it
        that the matcher does not know."""
        self._matcher = matcher
        self._stop_tokens = tokenizer.eos_tokens
        self._vocabulary_tokens = tokenizer.vocab_size
        words = -(-tokenizer.vocab_size // 32)
        bits = np.zeros(words + 1, np.uint32)  # of each token; the last word stays 0, for tokens beyond the vocabulary
        self._mask, self._octets = bits[:words], bits.view(np.uint8)
        self._sample = self._mask[:: max(1, words // 128)]
        self._check_text = check
        self._is_made = False  # whether the mask is that of what was accepted so far
        self._mask_s = 0.0  # what the last one took

    def check(self, text: str) -> None:
        """Raises ConstraintError: a complete reply breaks what could not be enforced while it was written."""
        wrong = self._check_text(text)
        if wrong is not None:
            raise ConstraintError(f"the reply breaks the JSON schema: {wrong}; ask again, or loosen the schema")

    def narrow(self, logits: Logits) -> tuple[Logits, NDArray[np.intp] | None]:
        """What to draw from, of logits [V]: where few tokens may follow, theirs [n] and their ids [n], rising; where
        many may, the same array, with -inf at all others, and None.

        Once the format is complete, only stop tokens may follow.
        """
        self._fill_mask()
        is_few = 2 * int(np.bitwise_count(self._mask).sum()) < len(logits)  # of whichever are few, those are touched
        few = _set_bits(self._mask if is_few else ~self._mask)
        few = few[: np.searchsorted(few, len(logits))]
        if is_few:
            return logits[few], few
        logits[few] = -np.inf
        logits[32 * len(self._mask) :] = -np.inf  # logits may be longer than the vocabulary
        return logits, None

    def is_wide(self) -> bool:
        """Whether nearly all tokens may follow, as within a string; after a slow mask only a guess."""
        if self._is_to_be_slow():
            return True
        self._fill_mask()
        return 8 * int.from_bytes(self._sample.tobytes()).bit_count() > 7 * 32 * len(self._sample)

    def allowed(self, token_ids: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether `narrow` would keep each of some tokens: bool [n]. token_ids: [n]."""
        if self._is_to_be_slow():
            return np.array(self._ask(token_ids.tolist()), np.bool_)
        self._fill_mask()
        octets = self._octets.take(token_ids >> 3, mode="clip")
        found: NDArray[np.bool_] = (octets >> (token_ids & 7).astype(np.uint8) & 1).view(np.bool_)
        return found

    def allows(self, token_id: int) -> bool:
        """Whether `narrow` would keep a token; without a mask, and so in a fraction of its time."""
        return self._ask([token_id])[0]

    def _ask(self, token_ids: list[int]) -> list[bool]:
        """Whether the mask has each of some tokens; without one."""
        if forced := self.forced():  # llguidance would also take other tokens
            return [token_id == forced[0] for token_id in token_ids]
        if self._matcher.is_stopped():  # and would take none
            return [token_id in self._stop_tokens for token_id in token_ids]
        # Asked about a token beyond the vocabulary, which logits may have, it would stop for good.
        takes, end = self._matcher.validate_tokens, self._vocabulary_tokens
        return [token_id < end and bool(takes([token_id])) for token_id in token_ids]

    def _is_to_be_slow(self) -> bool:
        return not self._is_made and self._mask_s > _SLOW_MASK_S

    def _fill_mask(self) -> None:
        if self._is_made:
            return
        started = time.perf_counter()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)  # unsafe: of unchecked size
        self._mask_s, self._is_made = time.perf_counter() - started, True
        self._check()

    def forced(self) -> list[int]:
        """Tokens that come next whatever the logits are: the mask leaves each as the only one. Often none."""
        found: list[int] = self._matcher.compute_ff_tokens()
        self._check()
        return found

    def accept(self, token_id: int) -> None:
        """Moves past a token that the mask allowed."""
        self._is_made = False
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(
                f"constrained decoding stopped: {_gist(self._matcher.get_error())}; simplify the response format"
            )


class ConstraintFactory:
    """Makes constraints for one tokenizer. Preparing the vocabulary takes a moment, so it is kept."""

    def __init__(self, tokenizer: Tokenizer, stop_token_ids: list[int]) -> None:
        """stop_token_ids: the tokens that may end a reply once its format is complete, at least one."""
        import llguidance

        special = sorted(tokenizer.control_tokens.union(stop_token_ids))
        tokens = tokenizer.all_piece_bytes()
        for token_id in special:
            tokens[token_id] = tokenizer.piece(token_id).encode()
        vocabulary = _Vocabulary(tokenizer, tokens, special, stop_token_ids[0])
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=stop_token_ids, slices=_SLICES
        )
        tokens.clear()  # llguidance has its own copy and keeps the wrapper

    def create(self, response_format: ResponseFormat) -> Constraint:
        """Raises ConstraintError for a schema or pattern that llguidance does not take."""
        import llguidance

        if response_format.type == ResponseFormat.Type.JSON_OBJECT:
            return self._for_json(response_format)
        try:
            grammar = llguidance.LLMatcher.grammar_from_regex(response_format.schema_or_pattern)
        except ValueError as error:
            raise _refused(response_format, str(error)) from error
        return Constraint(self._matcher(grammar, response_format), self._tokenizer)

    def _for_json(self, response_format: ResponseFormat) -> Constraint:
        import llguidance

        given = json.loads(response_format.schema_or_pattern)
        schema, is_checked = prepared(given)
        if schema is False:
            raise _refused(response_format, "false accepts nothing")
        options = {**_JSON_OPTIONS, "coerce_one_of": True, "lenient": response_format.lenient}
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=options)
        except ValueError as error:
            raise _refused(response_format, str(error)) from error
        matcher = self._matcher(grammar, response_format)
        _, notes = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
        if notes:
            _log.info("of a JSON schema, checked when the reply is complete: %s", "; ".join(notes))
        checks = [checker(given)] if is_checked or notes else []
        return Constraint(matcher, self._tokenizer, *checks)

    def _matcher(self, grammar: str, response_format: ResponseFormat) -> Any:
        import llguidance

        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(response_format, matcher.get_error())
        return matcher


def _set_bits(words: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Numbers of the bits that are set, rising; words that are 0 are passed over."""
    at = np.flatnonzero(words != 0)  # of booleans it is much faster
    bits = np.flatnonzero(np.unpackbits(words[at].view(np.uint8), bitorder="little").view(np.bool_))
    numbers: NDArray[np.intp] = at[bits >> 5] * 32 + (bits & 31)
    return numbers


class _Vocabulary:
    """What llguidance.TokenizerWrapper reads."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int], eos_token_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = eos_token_id
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _refused(response_format: ResponseFormat, reason: str) -> ConstraintError:
    is_json = response_format.type == ResponseFormat.Type.JSON_OBJECT
    what = "JSON schema" if is_json else "regular expression"
    advice = "see llguidance's documentation for what it supports"
    if is_json and reason.startswith("Unimplemented keys"):
        advice = "ResponseFormat.json(schema, lenient=True) checks that when the reply is complete"
    return ConstraintError(f"the {what} cannot constrain a reply: {_gist(reason)}; {advice}")


def _gist(reason: str) -> str:
    """The line that says what is wrong: after "error: " in a regex error, else the first."""
    lines = reason.strip().splitlines()
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
