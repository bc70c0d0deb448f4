"""How large each layer's keys and values are kept. Decided here; the emitters carry it out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheLayout:
    """How KV is kept. `slots` is the one place where the size of a ring is decided."""

    context_tokens: int
    longest_prefill_tokens: int
    half: bool = False  # float16 instead of float32
    rings: bool = True  # a container without a word for them has to do without

    def slots(self, window: int | None) -> int:
        """S: the ring of a sliding layer where that is shorter than the context, else the context."""
        if window is None or not self.rings:
            return self.context_tokens
        return min(self.context_tokens, window + self.longest_prefill_tokens)

    def read_slots(self, window: int | None, past: int | None) -> int:
        """Those that a run with no more than `past` tokens before it has to read; None: with as many as there may be.

        Of a ring all: any of its slots may hold a position.
        """
        slots = self.slots(window)
        return slots if past is None or self.is_ring(window) else min(slots, past)

    def is_ring(self, window: int | None) -> bool:
        """Whether positions wrap around."""
        return self.slots(window) < self.context_tokens

    def nbytes(self, kv_heads: int, head_size: int, window: int | None) -> int:
        """Bytes of one layer's keys and values."""
        return 2 * self.slots(window) * kv_heads * head_size * (2 if self.half else 4)
