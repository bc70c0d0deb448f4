"""How long the last turn took, in litert_lm's terms."""

from dataclasses import dataclass

from gemma_edge.runtime.kv.generate import TurnTiming


@dataclass(frozen=True)
class BenchmarkInfo:
    """Figures of the last turn. Field names are litert_lm's, but for those of speculative decoding (guesses that were
    run, those that stood and saved a call, and the calls that ran guesses), for the tokens that a response format left
    no choice about and that saved a call, and for those whose step ran in one call with other conversations'.
    """

    init_time_in_second: float
    time_to_first_token_in_second: float
    last_prefill_token_count: int
    last_prefill_tokens_per_second: float
    last_decode_token_count: int
    last_decode_tokens_per_second: float
    last_drafted_token_count: int = 0
    last_accepted_token_count: int = 0
    last_verify_count: int = 0
    last_forced_token_count: int = 0
    last_batched_token_count: int = 0

    @classmethod
    def of(cls, init_s: float, timing: TurnTiming) -> "BenchmarkInfo":
        """init_s: seconds it took to create the engine."""
        return cls(
            init_s,
            timing.time_to_first_token_s,
            timing.prefill_tokens,
            timing.prefill_tokens_per_s,
            timing.decode_tokens,
            timing.decode_tokens_per_s,
            timing.drafted_tokens,
            timing.accepted_tokens,
            timing.verify_calls,
            timing.forced_tokens,
            timing.batched_tokens,
        )
