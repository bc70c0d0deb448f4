"""The service for asyncio: the same replies however they are asked for, many at once, and an honest health."""

import asyncio
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.engine import Engine, HealthError
from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.services import production as module
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.services.production import ProductionService
from gemma_edge.runtime.services.request import GenerationConfig, MultimodalInput
from gemma_edge.runtime.services.timed import fast_generate

GREEDY = GenerationConfig(max_tokens=16, do_sample=False, repetition_penalty=1.0)


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


PROMPTS = ["And God said unto", "In the beginning", "And it came to pass", "Blessed are the"]


@pytest.fixture
def service(engine: Engine) -> ProductionService:
    return ProductionService(engine, GREEDY)


def test_a_stream_and_a_whole_reply_are_the_same(service: ProductionService, engine: Engine) -> None:
    async def both() -> tuple[str, list[str]]:
        whole = await service.generate(asked(PROMPTS[0]))
        return whole, [piece async for piece in service.stream(asked(PROMPTS[0]))]

    whole, pieces = asyncio.run(both())
    assert whole == "".join(pieces) == fast_generate(engine, asked(PROMPTS[0]), GREEDY)["response"]
    assert len(pieces) > 4  # as the model writes it, not in lumps


def test_a_batch_runs_at_once_and_keeps_its_order(service: ProductionService, engine: Engine) -> None:
    replies = asyncio.run(service.generate_batch(map(asked, PROMPTS)))
    assert replies == [fast_generate(engine, asked(prompt), GREEDY)["response"] for prompt in PROMPTS]
    assert len(set(replies)) > 1


def test_where_one_of_a_batch_fails_the_others_end(service: ProductionService) -> None:
    long = GenerationConfig(max_tokens=400, do_sample=False)
    with pytest.raises(ServiceError, match="there are no messages"):
        asyncio.run(service.generate_batch([asked(PROMPTS[0]), []], long))


def test_leaving_a_stream_ends_the_reply(service: ProductionService) -> None:
    async def first_pieces() -> str:
        async for piece in service.stream(asked(PROMPTS[1])):
            return piece
        return ""

    assert asyncio.run(first_pieces())
    assert asyncio.run(service.generate(asked(PROMPTS[1])))


def test_times_are_logged_and_texts_are_not(service: ProductionService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gemma_edge"):
        reply = asyncio.run(service.generate(asked(PROMPTS[0])))
    [record] = [record for record in caplog.records if record.name == module.__name__]
    assert "reply of 16 tokens to " in record.getMessage()
    assert reply not in record.getMessage()


def test_health_while_a_reply_is_written(service: ProductionService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_SECONDS", math.inf)  # whatever else the machine does

    async def at_once() -> tuple[str, Any]:
        whole = asyncio.create_task(service.generate(asked(PROMPTS[0])))
        await asyncio.sleep(0)
        return await asyncio.gather(whole, service.health_check())

    reply, health = asyncio.run(at_once())
    assert reply == asyncio.run(service.generate(asked(PROMPTS[0])))
    assert (health["status"], health["model_loaded"], health["errors"]) == ("healthy", True, [])
    assert not health["multimodal_enabled"]
    assert health["response_time"] > 0
    assert health["memory_usage"] > 20


def test_a_slow_model_is_degraded(service: ProductionService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.0)
    health = asyncio.run(service.health_check())
    assert (health["status"], health["model_loaded"]) == ("degraded", True)
    assert "expected at most 0 s" in health["errors"][0]


def test_a_model_that_cannot_answer_is_unhealthy(
    service: ProductionService, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_opened", {Path("gone"): (1,)})
    health = asyncio.run(service.health_check())
    assert (health["status"], health["model_loaded"]) == ("unhealthy", False)
    with pytest.raises(HealthError) as raised:
        engine.health()
    assert health["errors"] == [str(raised.value)]


def test_it_sees_and_hears(towers_bundle: Path, picture: Path, recording: Path, services_cache: str) -> None:
    question = MultimodalInput("What is this?", [picture, picture.read_bytes()], recording)
    with Engine(str(towers_bundle), cache_dir=services_cache) as engine:
        service = ProductionService(engine, GREEDY)
        replies = [
            asyncio.run(service.generate(multimodal_input=asked_about))
            for asked_about in (question, question, MultimodalInput("What is this?"))
        ]
        assert replies[0] == replies[1] != replies[2]
        assert asyncio.run(service.health_check())["multimodal_enabled"]


def test_a_model_that_does_not_see_says_so(service: ProductionService, picture: Path) -> None:
    with pytest.raises(MediaError, match=r"image content was given, .* has no vision encoder"):
        asyncio.run(service.generate(multimodal_input=MultimodalInput("What?", [picture])))
