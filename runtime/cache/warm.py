"""Before the first start: everything is read through and packed, so that starting is quick from then on."""

import time
from collections.abc import Iterator
from pathlib import Path

from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.cache.entries import Entry, Kind, entries
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.open import packed_encoders
from gemma_edge.runtime.executors.placement import cache_folder
from gemma_edge.runtime.formats.model import open_model
from gemma_edge.runtime.packing.folder import place_of
from gemma_edge.runtime.settings import default_threads


def warm(
    model_path: str, profile: str | None = None, threads: int | None = None, cache_dir: str | None = None
) -> Iterator[str]:
    """Does it step by step, and says of each what was done; the last line says how long a start takes now.

    The bundle's sections are compared with its own digests, weights are packed where they are not yet, and the model
    runs a token. Raises what `Engine` and its `health` raise.
    """
    model = open_model(Path(model_path))
    folder = cache_folder(cache_dir, model.path, prefer_disk=profile is not None)
    yield f"cache: {folder}" if folder else "cache: none, every start packs all weights into memory"
    before = _packed(folder)
    yield f"decoder: {_start(model_path, profile, threads, cache_dir)}, {_difference(before, _packed(folder))}"
    before, started = _packed(folder), time.perf_counter()
    for name in packed_encoders(model, threads or default_threads(None), folder):
        seconds, after = time.perf_counter() - started, _packed(folder)
        yield f"{name}: read in {seconds:.1f} s, {_difference(before, after)}"
        before, started = after, time.perf_counter()
    yield f"ready: {_start(model_path, profile, threads, cache_dir)}"


def _start(model_path: str, profile: str | None, threads: int | None, cache_dir: str | None) -> str:
    with Engine(model_path, Backend.CPU(thread_count=threads), cache_dir=cache_dir, profile=profile) as engine:
        started = time.perf_counter()
        engine.health()
        return f"started in {engine.init_s:.1f} s, one token in {time.perf_counter() - started:.2f} s"


def _packed(folder: Path | None) -> dict[str, Entry]:
    found = entries(place_of(folder)) if folder else []
    return {entry.name: entry for entry in found if entry.kind in (Kind.WEIGHTS, Kind.GRAPH)}


def _difference(before: dict[str, Entry], after: dict[str, Entry]) -> str:
    nbytes = sum(entry.nbytes for name, entry in after.items() if name not in before)
    return f"{format_bytes(nbytes)} packed now" if nbytes else "nothing to pack"
