"""Sampling against what the settings promise. That it draws what litert_lm draws is shown in test_litert_lm_parity."""

from collections import Counter

import numpy as np
import pytest
from litert_lm_builder.runtime.proto.sampler_params_pb2 import SamplerParameters

from gemma_edge.runtime.text.penalties import ban
from gemma_edge.runtime.text.sampler import Sampler, SamplerConfig, SamplerError, _likely, log_probability

LOGITS = np.log(np.array([0.05, 0.5, 0.25, 0.15, 0.05], np.float32))  # [V], V = 5


def draws(config: SamplerConfig, count: int = 4000, logits: np.ndarray = LOGITS) -> Counter[int]:
    sampler = Sampler(config)
    return Counter(sampler.pick(logits) for _ in range(count))


def test_top_k_one_takes_the_largest_and_the_first_of_equals() -> None:
    assert draws(SamplerConfig(top_k=1), 10) == {1: 10}
    assert Sampler(SamplerConfig(top_k=1)).pick(np.array([1, 7, 7], np.float32)) == 1


def test_a_config_that_says_nothing_is_greedy_as_in_litert_lm_and_a_temperature_draws() -> None:
    assert draws(SamplerConfig(seed=3), 10) == {1: 10}
    assert len(draws(SamplerConfig(temperature=2.0, seed=3), 100)) > 1


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        (SamplerConfig(top_k=2, top_p=1.0), {1, 2}),
        (SamplerConfig(top_k=5, top_p=0.7), {1, 2}),  # 0.5 + 0.25 reaches 0.7
        (SamplerConfig(top_k=5, top_p=0.76), {1, 2, 3}),
        (SamplerConfig(top_k=5, top_p=0.0), {1}),
        (SamplerConfig(top_k=5, temperature=0.0), {1}),
        (SamplerConfig(top_k=99, top_p=1.0), {0, 1, 2, 3, 4}),
    ],
)
def test_only_the_candidates_are_drawn_and_each_of_them(config: SamplerConfig, allowed: set[int]) -> None:
    assert set(draws(config)) == allowed


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_probabilities(temperature: float) -> None:
    count = 20_000
    seen = draws(SamplerConfig(top_k=5, top_p=1.0, temperature=temperature), count)
    weights = np.exp(LOGITS / temperature)
    for token_id, probability in enumerate(weights / weights.sum()):
        deviation = np.sqrt(probability * (1 - probability) / count)
        assert abs(seen[token_id] / count - probability) < 5 * deviation


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplerConfig(top_k=5, top_p=1.0, seed=seed))
        return [sampler.pick(LOGITS) for _ in range(50)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(None) == run(0)


def test_minus_infinity_is_never_drawn() -> None:
    logits = LOGITS.copy()
    ban(logits, [1, 4, 99, -1])
    assert set(draws(SamplerConfig(top_k=5, top_p=1.0), logits=logits)) == {0, 2, 3}


def test_log_probability() -> None:
    assert log_probability(LOGITS, 2) == pytest.approx(np.log(0.25), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k is 0, expected at least 1; use top_k=1 for greedy text"),
        ({"top_p": 1.1}, "top_p is 1.1, expected 0 to 1; use top_p=1 to keep every candidate"),
        ({"top_p": float("nan")}, "top_p is nan, expected 0 to 1; use top_p=1 to keep every candidate"),
        ({"temperature": -0.1}, "temperature is -0.1, expected 0 or more; use top_k=1 for greedy text"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SamplerError) as caught:
        SamplerConfig(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)  # what code written for litert_lm catches


def test_the_bundles_own_settings() -> None:
    top_p = SamplerParameters(type=SamplerParameters.TOP_P, k=64, p=0.5, temperature=0.25, seed=3)
    assert SamplerConfig.of_bundle(top_p) == SamplerConfig(top_k=64, top_p=0.5, temperature=0.25, seed=3)
    top_k = SamplerParameters(type=SamplerParameters.TOP_K, k=4, temperature=1)
    assert SamplerConfig.of_bundle(top_k) == SamplerConfig(top_k=4, top_p=1.0, temperature=1.0, seed=0)
    for parameters in (SamplerParameters(), SamplerParameters(type=SamplerParameters.GREEDY, k=9)):
        assert SamplerConfig.of_bundle(parameters) == SamplerConfig(top_k=1)


def plainly(sampler: Sampler, config: SamplerConfig, logits: np.ndarray) -> int:
    """What a sampler draws by the letter: everything sorted, one pass after the other. It moves its generator."""
    whole = np.lexsort((np.arange(len(logits)), -logits))
    best = whole[logits[whole] > -np.inf][: config.top_k]
    weights = np.exp((logits[best] - logits[best[0]]) / np.float32(config.temperature))
    cumulative = np.cumsum(weights * (np.float32(1) / np.cumsum(weights)[-1]), dtype=np.float64)
    last = min(int(np.searchsorted(cumulative, config.top_p or 0.0)), len(best) - 1)
    return int(best[np.searchsorted(cumulative[: last + 1], sampler._random.uniform() * cumulative[last])])


KINDS = ["spread", "equals", "zeros of both signs", "mostly forbidden", "three left", "all equal", "in one place"]


def some_logits(size: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(size)
    logits = random.normal(scale=5, size=size).astype(np.float32)
    match kind:
        case "equals":
            logits = np.round(logits)
        case "zeros of both signs":
            logits = np.round(logits / 10)
        case "mostly forbidden":
            logits[random.random(size) < 0.99] = -np.inf
            logits[0] = 0
        case "three left":
            logits[3:] = -np.inf
        case "all equal":
            logits[:] = 0
        case "in one place":
            logits[:600] += 30
    return logits


@pytest.mark.parametrize("size", [5, 512, 513, 4096, 262_145, 262_400])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_looked_at_is_what_a_whole_sort_begins_with(size: int, kind: str) -> None:
    logits = some_logits(size, kind)
    whole = np.lexsort((np.arange(size), -logits))
    for k in (1, 2, 40, 64, 1000, 1024):
        likely = _likely(logits, min(k, size))
        assert np.all(np.diff(likely) > 0)
        assert not np.any(logits[likely] == -np.inf)
        assert set(likely) >= {i for i in whole[:k] if logits[i] > -np.inf}


@pytest.mark.parametrize("size", [5, 4096, 70_001])
@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_what_it_would_by_the_letter(size: int, kind: str) -> None:
    logits = some_logits(size, kind)
    for seed, (top_k, top_p, temperature) in enumerate(
        [(2, 1.0, 1.0), (40, 0.95, 0.7), (64, 0.5, 2.0), (64, 1.0, 9.0), (1000, 0.99, 30.0), (9**12, 1.0, 30.0)]
    ):
        config = SamplerConfig(top_k, top_p, temperature, seed)
        sampler, other = Sampler(config), Sampler(config)
        for _ in range(8):
            assert sampler.pick(logits) == plainly(other, config, logits)
        assert sampler.state == other.state


@pytest.mark.parametrize("size", [5, 4096, 70_001])
@pytest.mark.parametrize("kind", KINDS)
def test_of_what_is_allowed_it_draws_as_of_masked_logits(size: int, kind: str) -> None:
    given, random, found = some_logits(size, kind), np.random.default_rng(1), 0
    for share in (0.1, 0.6, 0.9, 1.0):
        allowed = random.random(size) < share
        allowed[0] = True
        masked = np.where(allowed, given, np.float32(-np.inf))
        for seed, top_k in enumerate((2, 3, 40, 64, 1000)):
            config = SamplerConfig(top_k, 0.98, 3.0, seed)
            sampler, other = Sampler(config), Sampler(config)
            picked = sampler.pick_allowed(given, lambda ids: allowed[ids])  # noqa: B023
            if picked is None:
                assert sampler.state == other.state
                likeliest = np.lexsort((np.arange(size), -given))[: top_k + top_k // 8 + 32]
                assert np.sum(masked[likeliest] > -np.inf) < top_k
            else:
                found += 1
                assert (picked, sampler.state) == (plainly(other, config, masked), other.state)
    assert found > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_no_number_is_is_left_to_a_mask(bad: float) -> None:
    logits = np.zeros(5000, np.float32)
    logits[7] = bad
    sampler = Sampler(SamplerConfig(top_k=40))
    assert sampler.pick_allowed(logits, lambda ids: ids >= 0) is None


@pytest.mark.parametrize("size", [20, 2048, 262_400])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("top_k", [1, 64, 1024])
def test_what_no_number_is_is_picked_so_that_it_is_noticed(size: int, bad: float, top_k: int) -> None:
    """Wherever it is: in a group of _best, or in the rest."""
    for at in (0, 7, size - 1):
        logits = np.random.default_rng(0).normal(size=size).astype(np.float32)
        logits[at] = bad
        assert Sampler(SamplerConfig(top_k=top_k)).pick(logits) == at
