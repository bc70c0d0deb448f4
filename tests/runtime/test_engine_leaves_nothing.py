"""What engines take and leave: dropped without `close`, and with conversations that are silent."""

import subprocess
import sys
from pathlib import Path

import pytest

from gemma_edge.profiles.sizes import MIB
from gemma_edge.runtime.executors.open import plan_of
from gemma_edge.runtime.formats.model import open_model

REPOSITORY = Path(__file__).resolve().parents[2]

IDLE = """
import sys
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.memory.reading import read_memory_exact

count = int(sys.argv[3])
with Engine(sys.argv[1], cache_dir=sys.argv[2], slots=count) as engine:
    conversations = [engine.create_conversation(max_output_tokens=200) for _ in range(count)]
    for turn in range(3):
        for number, conversation in enumerate(conversations):
            conversation.send_message(f"{number}, {turn}: and it came to pass in those days")
    memory = engine.memory()
    print(read_memory_exact().anon_bytes, memory.kv_cache_bytes, memory.snapshot_bytes)
"""


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def in_a_process(*arguments: object) -> list[int]:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_dropped_engines_leave_no_memory_descriptor_or_thread(tiny_model: Path, cache_dir: Path) -> None:
    """A short run of the tool sees 50 KiB that each engine leaves; its own length, with the same limit, 10 KiB."""
    short = ("--before", 10, "--rounds", 3, "--each", 10)
    grown_bytes, descriptors, threads = in_a_process("-m", "tools.drop_engines", tiny_model, cache_dir, *short)
    assert grown_bytes < MIB // 2
    assert (descriptors, threads) == (0, 0)


def test_silent_conversations_take_what_the_plan_counts_for_them(tiny_model: Path, cache_dir: Path) -> None:
    plan = plan_of(open_model(tiny_model))
    (few_bytes, *few), (many_bytes, *many) = (
        in_a_process("-c", IDLE, tiny_model, cache_dir, count) for count in (2, 8)
    )
    planned_bytes = plan.footprint(slots=8).anon_bytes - plan.footprint(slots=2).anon_bytes
    assert sum(many) - sum(few) == planned_bytes
    # Pages that no token was written to yet are not there; a process's own memory moves by some hundred KiB, and what a
    # slot binds, nine signatures here, takes LiteRT some 20 KiB each.
    assert planned_bytes * 0.5 < many_bytes - few_bytes < planned_bytes + 2 * MIB
