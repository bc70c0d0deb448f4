"""A program that asks litert_lm about an image (the sixth of those in test_litert_lm_programs.py)."""

from pathlib import Path

import litert_lm

from gemma_edge import runtime
from tests.media_files import photograph
from tests.runtime.media.towers import Towers
from tests.runtime.programs import image_question


def test_an_image_question(towers: Towers, tmp_path: Path) -> None:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    found = []
    for module in (runtime, litert_lm):
        cache = tmp_path / module.__name__
        cache.mkdir()
        one = module.Backend.CPU(thread_count=1)
        with module.Engine(str(towers.bundle), one, vision_backend=one, cache_dir=str(cache)) as engine:
            found.append(image_question(module, engine, photograph("rocket.jpg")))
    ours, theirs = found
    assert all(ours["replies"])
    assert ours["replies"][2] == ours["replies"][0]
    assert ours == theirs
