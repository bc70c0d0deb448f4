"""Bounds of the verdicts, against what was read."""

import itertools
import math

import pytest

from gemma_edge.converter.quality.verdict import BOUNDS, Verdict, verdict_of


@pytest.mark.parametrize(
    ("kl", "top1", "ratio", "expected"),
    [
        (0.084, 0.88, 1.07, Verdict.GOOD),
        (0.35, 0.77, 1.45, Verdict.USABLE),
        (0.7, 0.65, 2.0, Verdict.DEGRADED),
        (1.07, 0.56, 3.0, Verdict.NOT_USABLE),
        (3.19, 0.27, 27.0, Verdict.NOT_USABLE),
        (0.1, 0.9, 2.5, Verdict.NOT_USABLE),  # perplexity alone
        (0.001, 0.1, 1.0, Verdict.USABLE),  # a model without training
        (math.nan, 0.9, 1.0, Verdict.NOT_USABLE),
        (0.1, 0.9, math.inf, Verdict.NOT_USABLE),
    ],
)
def test_the_verdict_of_what_was_read(kl: float, top1: float, ratio: float, expected: Verdict) -> None:
    assert verdict_of(kl, top1, ratio) is expected


def test_bounds_widen_from_verdict_to_verdict() -> None:
    bounds = list(BOUNDS.values())
    for better, worse in itertools.pairwise(bounds):
        assert better.kl < worse.kl
        assert better.perplexity_ratio < worse.perplexity_ratio
        assert better.top1 >= worse.top1


def test_every_verdict_has_a_meaning() -> None:
    assert len({verdict.meaning for verdict in Verdict}) == len(Verdict)
