"""Figures of replies that were really written, and of those that failed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ContextOverflowError
from gemma_edge.runtime.serve.guard.policy import Direction, Policy
from gemma_edge.runtime.services.monitored import MonitoringService
from gemma_edge.runtime.services.request import GenerationConfig
from gemma_edge.runtime.services.timed import fast_generate

GREEDY = GenerationConfig(max_tokens=12, do_sample=False, repetition_penalty=1.0)
CHAT: list[Any] = [{"role": "user", "content": "And God said unto"}]
LONG: list[Any] = [{"role": "user", "content": "And God said. " * 400}]


@pytest.fixture
def service(engine: Engine) -> MonitoringService:
    return MonitoringService(engine)


def test_the_figures_are_the_replys(service: MonitoringService, engine: Engine) -> None:
    metrics = service.measure_performance(CHAT, GREEDY)
    assert (metrics.success, metrics.error_message) == (True, None)
    assert (metrics.token_count, len(metrics.token_s)) == (12, 11)
    assert math.isclose(metrics.tokens_per_second, 11 / sum(metrics.token_s))
    assert metrics.first_token_s is not None
    assert metrics.first_token_s + sum(metrics.token_s) <= metrics.response_time
    with engine.create_conversation() as conversation:
        conversation.send_message(CHAT[0], max_output_tokens=1)
        assert metrics.input_length == conversation.usage.prompt
    assert metrics.memory_usage_mb > 20
    assert metrics.gpu_memory_mb is None
    assert metrics.model_name == Path(engine.model_path).name


def test_a_reply_is_the_same_measured_or_not(service: MonitoringService, engine: Engine) -> None:
    assert service.generate(CHAT, GREEDY) == fast_generate(engine, CHAT, GREEDY)["response"]
    assert service.monitor.performance_summary().total_tokens == 12


def test_one_sample_is_enough_for_p95(service: MonitoringService) -> None:
    metrics = service.measure_performance(CHAT, GREEDY)
    summary = service.monitor.performance_summary()
    assert summary.p95_response_time == summary.avg_response_time == metrics.response_time
    assert summary.success_rate == 1


def test_what_failed_is_remembered_and_alerted(service: MonitoringService) -> None:
    metrics = service.measure_performance(LONG, GREEDY)
    assert not metrics.success
    assert "512" in str(metrics.error_message)  # what the context holds
    assert {(alert.type.value, alert.severity.value) for alert in service.monitor.check_alerts()} >= {
        ("error", "high"),
        ("reliability", "high"),
    }
    with pytest.raises(ContextOverflowError):
        service.generate(LONG, GREEDY)
    assert service.monitor.performance_summary().success_rate == 0
    assert service.monitor.performance_summary().total_requests == 2


def test_perplexity_is_the_models(service: MonitoringService, engine: Engine) -> None:
    """Of what it writes itself it is surprised less than of the same words turned round."""
    reply = service.generate(CHAT, GREEDY)
    own = service.evaluate_quality(CHAT[0]["content"], reply, perplexity=True)
    turned = " ".join(reversed(reply.split()))
    other = service.evaluate_quality(CHAT[0]["content"], turned, perplexity=True)
    assert own.perplexity is not None
    assert other.perplexity is not None
    assert 1 <= own.perplexity < other.perplexity
    with engine.create_conversation() as conversation, engine.create_session(apply_prompt_template=False) as session:
        session.run_prefill([conversation.render_message_to_string(CHAT[0])])
        [tokens] = session.run_text_scoring([reply]).token_scores
    assert math.isclose(own.perplexity, math.exp(-sum(tokens) / len(tokens)), rel_tol=1e-5)
    assert service.monitor.quality_summary().total_evaluations == 2


def test_scores_without_a_model(engine: Engine) -> None:
    policy = Policy.of({"category": [{"name": "weapons", "words": ["bomb"], "output": "refuse"}]})
    service = MonitoringService(engine, rules=policy.rules[Direction.OUTPUT])
    found = service.evaluate_quality("What is a comet?", "A bomb. It is a ball of ice that flies far out.")
    assert (found.safety_score, found.factual_accuracy, found.perplexity) == (0.5, None, None)
    assert service.evaluate_quality("?", "the moon", "the moon").factual_accuracy == 1
    assert service.evaluate_quality("?", "", perplexity=True).perplexity is None


def test_everything_is_exported(service: MonitoringService, tmp_path: Path) -> None:
    service.measure_performance(CHAT, GREEDY)
    service.evaluate_quality("What?", "That.")
    service.monitor.export_metrics(tmp_path / "metrics.json")
    exported = json.loads((tmp_path / "metrics.json").read_text())
    assert exported["model_name"] == service.monitor.model_name
    assert exported["performance_metrics"][0]["token_count"] == 12
    assert exported["performance_summary"]["total_tokens"] == 12
    assert exported["quality_summary"]["total_evaluations"] == 1
    assert exported["current_alerts"] == []
