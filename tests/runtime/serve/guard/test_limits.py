"""The sliding window, against a list of every request that was ever let through."""

import random

import pytest

from gemma_edge.runtime.serve.guard.limits import Limits, OverLimit, SlidingWindow, Ticket


class Clock:
    """A time that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _refused(answer: Ticket | OverLimit) -> OverLimit:
    assert isinstance(answer, OverLimit)
    return answer


def test_the_default_is_the_documents() -> None:
    clock = Clock()
    window = SlidingWindow(Limits(), clock)
    for _ in range(100):
        assert isinstance(window.admit("a"), Ticket)
    assert _refused(window.admit("a")) == OverLimit("requests", 100, 100, 1, 3600.0)
    assert isinstance(window.admit("b"), Ticket)
    assert window.usage("a").requests_last_hour == 100
    assert window.usage("a").remaining_requests == 0
    assert window.usage("a").reset_time == 4600.0


def test_a_refusal_says_exactly_when() -> None:
    clock = Clock()
    window = SlidingWindow(Limits(requests=2, window_s=10), clock)
    window.admit("a")
    clock.now += 3
    window.admit("a")
    clock.now += 2.5
    wait_s = _refused(window.admit("a")).wait_s
    assert wait_s == 4.5
    clock.now += wait_s - 0.001
    assert _refused(window.admit("a"))
    clock.now += 0.001
    assert isinstance(window.admit("a"), Ticket)


def test_a_refused_request_does_not_count() -> None:
    clock = Clock()
    window = SlidingWindow(Limits(requests=1, window_s=10), clock)
    window.admit("a")
    for _ in range(5):
        clock.now += 1
        assert _refused(window.admit("a")).wait_s == 1000 + 10 - clock.now


def test_tokens_are_set_aside_and_corrected() -> None:
    clock = Clock()
    window = SlidingWindow(Limits(requests=None, tokens=100, window_s=10), clock)
    ticket = window.admit("a", 80)
    assert isinstance(ticket, Ticket)
    clock.now += 1
    assert _refused(window.admit("a", 30)) == OverLimit("tokens", 100, 80, 30, 9.0)
    ticket.tokens -= 70  # it used 10 after all
    assert isinstance(window.admit("a", 90), Ticket)
    assert window.usage("a").remaining_tokens == 0
    clock.now += 8.5
    refused = _refused(window.admit("a", 20))  # the oldest 10 are not enough: the 90 must leave as well
    assert refused.wait_s == pytest.approx(1.5)
    clock.now += 1.5
    assert isinstance(window.admit("a", 20), Ticket)


def test_what_never_fits_says_so() -> None:
    window = SlidingWindow(Limits(requests=None, tokens=100), Clock())
    assert _refused(window.admit("a", 101)) == OverLimit("tokens", 100, 0, 101, None)


def test_never_more_than_the_limit_in_any_window() -> None:
    random_numbers, clock = random.Random(3), Clock()
    window = SlidingWindow(Limits(requests=5, tokens=60, window_s=10), clock)
    admitted: list[tuple[float, int]] = []
    refusals = 0
    for _ in range(3000):
        clock.now += random_numbers.choice([0.0, 0.1, 0.5, 2.0])
        tokens = random_numbers.randint(0, 30)
        answer = window.admit("a", tokens)
        inside = [count for at, count in admitted if clock.now - 10 < at]
        fits = len(inside) < 5 and sum(inside) + tokens <= 60
        assert isinstance(answer, Ticket) == fits
        if fits:
            admitted.append((clock.now, tokens))
        else:
            refusals += 1
    assert refusals > 500


def test_users_of_long_ago_are_forgotten_and_many_requests_take_bounded_memory() -> None:
    clock = Clock()
    window = SlidingWindow(Limits(requests=None, window_s=10), clock)
    for number in range(1000):
        window.admit(f"user {number}")
    clock.now += 11
    window.admit("late")
    assert list(window._users) == ["late"]
    for _ in range(20_000):
        window.admit("late", 1)
        clock.now += 0.0001
    assert len(window._users["late"]) < 2 * 4096
    assert window.usage("late").requests_last_hour == 20_001
    assert window.usage("late").tokens_last_hour == 20_000


def test_a_limit_of_ones_own() -> None:
    window = SlidingWindow(Limits(requests=1), Clock())
    assert isinstance(window.admit("a", limits=Limits(requests=2)), Ticket)
    assert isinstance(window.admit("a", limits=Limits(requests=2)), Ticket)
    assert _refused(window.admit("a", limits=Limits(requests=2))).limit == 2
    assert window.usage("a", Limits(requests=2)).remaining_requests == 0
