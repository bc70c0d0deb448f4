"""The signatures of a LiteRT decoder: what a call runs, how far back it looks, and what it is called.

LiteRT-LM calls `decode`, and of those whose names begin with "prefill" one for each number of rows. Every other name is
ours alone: "until_1024_decode" is the same step for positions up to 1024, which reads no more of the caches than that,
"verify_4" runs four tokens, of which three are guesses, and gives the logits after each, and "decode_4" takes a step in
each of four conversations, each with caches and a position of its own. Where the bundle has a drafter, LiteRT-LM calls
the longest verification over the whole context as well, by the name "verify".
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

_NAME: Final = re.compile(
    r"(?:until_(?P<past>[1-9]\d{0,8})_)?(?:decode|(?P<kind>prefill|verify|decode)_(?P<rows>[1-9]\d{0,8}))"
)

VERIFY: Final = "verify"


def own_name(name: str, rows: int) -> str:
    """What a signature of so many rows is called here: LiteRT-LM's "verify" is a "verify_4"."""
    return f"{VERIFY}_{rows}" if name == VERIFY else name


@dataclass(frozen=True)
class Call:
    """One signature. rows: tokens it runs at once. past: the most that may stand before them; None: the whole context.

    has_logits: of every row; a prefill only fills the caches. is_batch: each row is a step of another conversation.
    """

    rows: int
    has_logits: bool
    past: int | None = None
    is_batch: bool = False

    @property
    def name(self) -> str:
        """What it is called in a file."""
        kind = "prefill" if not self.has_logits else "verify" if self.is_verify else "decode"
        base = kind if self.is_decode else f"{kind}_{self.rows}"
        return base if self.past is None else f"until_{self.past}_{base}"

    @property
    def is_decode(self) -> bool:
        """One token in, its logits out."""
        return self.has_logits and self.rows == 1

    @property
    def is_verify(self) -> bool:
        """Several tokens of one conversation in, the logits of each out."""
        return self.has_logits and self.rows > 1 and not self.is_batch

    @classmethod
    def of_name(cls, name: str) -> Self | None:
        """The call of that name; None for what is none of ours."""
        match = _NAME.fullmatch(name)
        if match is None or (match["kind"] in ("verify", "decode") and match["rows"] == "1"):  # which would be a step
            return None
        kind, past, rows = match["kind"], match["past"], match["rows"]
        return cls(int(rows or 1), kind != "prefill", None if past is None else int(past), kind == "decode")

    @property
    def whole(self) -> "Call":
        """The same over the whole context."""
        return replace(self, past=None)

    @property
    def reach(self) -> float:
        """`past` as a number."""
        return math.inf if self.past is None else self.past

    def takes(self, position: int) -> bool:
        """Whether it may run with its first row at `position`. Each row of a verification stands before the next."""
        return position + (self.rows - 1 if self.is_verify else 0) <= self.reach


def calls(
    prefill_tokens: Sequence[int],
    spans: Iterable[int],
    verify_tokens: Sequence[int] = (),
    batch_rows: Sequence[int] = (),
) -> Iterator[Call]:
    """A decode step, each length of a prefill, of a verification and of a batch over the whole context; over each span
    a step, the longest prefill, each verification and each batch.

    Each takes memory, and the shorter prefills are called once a turn.
    """
    yield Call(1, True)
    yield from (Call(rows, False) for rows in prefill_tokens)
    yield from (Call(rows, True) for rows in verify_tokens)
    yield from (Call(rows, True, is_batch=True) for rows in batch_rows)
    for past in spans:
        yield Call(1, True, past)
        yield Call(prefill_tokens[-1], False, past)
        yield from (Call(rows, True, past) for rows in verify_tokens)
        yield from (Call(rows, True, past, is_batch=True) for rows in batch_rows)


def row_name(cache: str, row: int) -> str:
    """What a batch calls the cache of one of its rows: "kv_cache_k_3_row_0" of the decode step's "kv_cache_k_3"."""
    return f"{cache}_row_{row}"
