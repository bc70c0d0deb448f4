"""Slots as files: equal to the bit in another process, and nothing else passes for one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ExecutorError, SlotState
from gemma_edge.runtime.formats.atomic import OutputError
from gemma_edge.runtime.kv.saved import SavedCacheError, opened_state, save_state
from gemma_edge.runtime.media.soft_tokens import SoftToken

PROMPT = "And it came to pass in those days, " * 20  # several times around the rings

IN_ANOTHER_PROCESS = """
import json, sys
from gemma_edge.runtime.engine import Engine
model, cache_dir, saved, prompt = sys.argv[1:]
with Engine(model, cache_dir=cache_dir) as engine:
    token_ids = engine.load_cache(saved)
    session = engine.create_session(apply_prompt_template=False, max_output_tokens=5)
    session.run_prefill([prompt])
    ran = session.timing.run_tokens
    logits = session.logits.tobytes().hex()
    text = session.run_decode().texts[0]
    print(json.dumps([list(token_ids), ran, logits, text, session.usage.run]))
"""


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_another_process_goes_on_without_prefill(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    saved = tmp_path / "prompt.cache"
    with Engine(str(tiny_model), cache_dir=str(cache_dir)) as engine:
        session = engine.create_session(apply_prompt_template=False, max_output_tokens=5)
        session.run_prefill([PROMPT])
        session.save_cache(saved)
        prompt, logits, text = list(session.token_ids), session.logits, session.run_decode().texts[0]
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tiny_model), str(cache_dir), str(saved), PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    token_ids, ran, found, their_text, usage_run = json.loads(done.stdout)
    assert token_ids == prompt[:-1]
    assert ran == 0
    assert usage_run == 1  # the last token, whose logits draw the first
    assert bytes.fromhex(found) == logits.tobytes()
    assert their_text == text


def test_a_conversation_is_saved_too(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.cache"
    message = "In the beginning God created the heaven and the earth"
    with Engine(str(tiny_model), cache_dir=str(cache_dir)) as engine:
        conversation = engine.create_conversation(max_output_tokens=5)
        with pytest.raises(RuntimeError, match="nothing to save: the conversation has no turn; send a message first"):
            conversation.save_cache(saved)
        reply = str(conversation.send_message(message))
        conversation.save_cache(saved)
        with pytest.raises(OutputError, match="nowhere"):
            conversation.save_cache(tmp_path / "nowhere" / "x")
    with Engine(str(tiny_model), cache_dir=str(cache_dir)) as engine:
        engine.load_cache(saved)
        with engine.create_conversation(max_output_tokens=5) as conversation:
            assert str(conversation.send_message(message)) == reply
            assert conversation.usage.run == 1


def test_a_fresh_session_has_nothing_to_save(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    match = "nothing to save: the session is fresh; call run_prefill first"
    with Engine(str(tiny_model), cache_dir=str(cache_dir)) as engine, pytest.raises(RuntimeError, match=match):
        engine.create_session().save_cache(tmp_path / "x")


def test_another_models_cache_is_refused(
    tiny_bundle: Callable[[str, str], Path], cache_dir: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "prompt.cache"
    with Engine(str(tiny_bundle("gemma3n", "fp32")), cache_dir=str(cache_dir)) as engine:
        session = engine.create_session()
        session.run_prefill(["In the beginning"])
        session.save_cache(saved)
    with Engine(str(tiny_bundle("gemma3n", "int4")), cache_dir=str(cache_dir)) as engine:
        with pytest.raises(
            SavedCacheError, match=r"prompt\.cache: was saved with the model \w{12}, this one is \w{12}; load it with"
        ):
            engine.load_cache(saved)
        session = engine.create_session(max_output_tokens=3)  # and the engine goes on
        session.run_prefill(["In the beginning"])
        assert session.run_decode().texts[0]


def state(**changes: Any) -> SlotState:
    values: dict[str, Any] = {
        "token_ids": (2, 5, 7),
        "high_water": 4,
        "arrays": {"kv_cache_k_0": np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)},
    }
    return SlotState(**(values | changes))


def test_rows_of_images_and_recordings_come_back(tmp_path: Path) -> None:
    row = np.array([1.5, -2], np.float32)
    token_ids = (2, SoftToken(9, row, ("digest", 3)), 7)
    save_state(state(token_ids=token_ids), "d" * 64, tmp_path / "x")
    with opened_state(tmp_path / "x", "d" * 64) as found:
        assert found.token_ids == token_ids
        assert int(found.token_ids[1]) == 9
        np.testing.assert_array_equal(found.token_ids[1].embedding, row)
        assert found.high_water == 4
        assert list(found.arrays) == ["kv_cache_k_0"]
        np.testing.assert_array_equal(found.arrays["kv_cache_k_0"], state().arrays["kv_cache_k_0"])


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def refused(match: str) -> None:
        with pytest.raises(SavedCacheError, match=match), opened_state(path, ""):
            pass

    refused(r"x: cannot be read \(No such file or directory\); check the path")
    for content in (b"", b"text", b"PK\x03\x04"):
        path.write_bytes(content)
        refused(r"x: holds no keys and values, or is damaged \(.*\); save it again")
    np.savez(path.open("wb"), other=np.zeros(1))
    refused("holds no keys and values")
    np.savez(path.open("wb"), format=np.array("gemma-edge keys and values 9"))
    refused("found gemma-edge keys and values 9, expected gemma-edge keys and values 1; save it again")


def test_a_flipped_byte_is_found_before_anything_changes(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    saved = tmp_path / "prompt.cache"
    with Engine(str(tiny_model), cache_dir=str(cache_dir)) as engine:
        session = engine.create_session(apply_prompt_template=False, max_output_tokens=3)
        session.run_prefill([PROMPT])
        session.save_cache(saved)
        content = bytearray(saved.read_bytes())
        content[len(content) // 2] ^= 1
        saved.write_bytes(content)
        before = session.logits
        with pytest.raises(SavedCacheError, match="is damaged"):
            engine.load_cache(saved)
        np.testing.assert_array_equal(session.logits, before)


def test_arrays_of_another_shape_are_refused(
    tiny_bundle: Callable[[str, str], Path], cache_dir: Path, tmp_path: Path
) -> None:
    with Engine(str(tiny_bundle("gemma3n", "int4")), cache_dir=str(cache_dir)) as engine:
        save_state(state(), engine._decoder.digest, tmp_path / "x")
        with pytest.raises(ExecutorError, match=r"shapes than this decoder's \(1 arrays, expected 10\); they are"):
            engine.load_cache(tmp_path / "x")
