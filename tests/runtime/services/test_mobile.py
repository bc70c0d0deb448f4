"""A phone's service: inside its profile, chat and recordings."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.profiles.budget import OverBudget
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.services.mobile import MobileService, language_name
from gemma_edge.runtime.services.request import GenerationConfig
from gemma_edge.runtime.services.timed import fast_generate
from gemma_edge.runtime.tasks.media import LANGUAGES, transcribe, transcribe_and_translate

EARLIER = [{"role": "user", "content": "In the beginning"}, {"role": "assistant", "content": "God"}]


def test_chat(tiny_bundle: Callable[[str, str], Path], services_cache: str) -> None:
    with MobileService(tiny_bundle("gemma3n", "int4"), cache_dir=services_cache) as service:
        reply = service.mobile_chat("And the LORD", max_tokens=12)
        config = GenerationConfig(max_tokens=12, repetition_penalty=1.0)
        messages = [*EARLIER, {"role": "user", "content": "And the LORD"}]
        assert reply == fast_generate(service.engine, messages[2:], config)["response"]
        later = service.mobile_chat("And the LORD", max_tokens=12, earlier=EARLIER)
        assert later == fast_generate(service.engine, messages, config)["response"]


def test_a_bundle_beyond_the_profile_is_refused(
    tiny_bundle: Callable[[str, str], Path], services_cache: str, tmp_path: Path, repository: Path
) -> None:
    profile = tmp_path / "watch.toml"
    text = (repository / "profiles" / "phone-2gb.toml").read_text()
    profile.write_text(text.replace('budget_bytes = "2 GiB"', 'budget_bytes = "64 MiB"'))
    with pytest.raises(OverBudget, match=r"the budget is 64 MiB"):
        MobileService(tiny_bundle("gemma3n", "int4"), str(profile), cache_dir=services_cache)


def test_recordings(towers_bundle: Path, recording: Path, services_cache: str) -> None:
    with (
        MobileService(towers_bundle, cache_dir=services_cache) as service,
        Engine(str(towers_bundle), cache_dir=services_cache) as engine,
    ):
        assert service.process_audio(recording) == "".join(transcribe(engine, recording))
        translated = service.process_audio(recording, "translate", "de")
        assert translated == "".join(transcribe_and_translate(engine, recording, "German"))
        assert service.process_audio(recording.read_bytes(), "translate", "German") == translated


def test_tasks_and_languages_that_are_not_known(
    tiny_bundle: Callable[[str, str], Path], services_cache: str, recording: Path
) -> None:
    with MobileService(tiny_bundle("gemma3n", "int4"), cache_dir=services_cache) as service:
        with pytest.raises(
            ServiceError, match="unknown task 'summarise', expected one of transcribe, translate; choose"
        ):
            service.process_audio(recording, "summarise")
        with pytest.raises(
            ServiceError, match=r"unknown language code 'xx', expected one of ar, bg, bn, .*; or write its name"
        ):
            service.process_audio(recording, "translate", "xx")
    assert language_name("EN") == LANGUAGES["en"] == "English"
    assert language_name("Klingon") == "Klingon"
