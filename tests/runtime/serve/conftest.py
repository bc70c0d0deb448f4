"""One engine and one server for the tests that leave it as it was."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemma_edge.runtime.engine import Engine
from tests.runtime.serve.running import Running, running


@pytest.fixture(scope="session")
def serve_model(tiny_bundle: Callable[[str, str], Path]) -> Path:
    """Gemma 3, context 512, window 64, rings of 96 slots."""
    return tiny_bundle("gemma3", "int4")


@pytest.fixture(scope="session")
def serve_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed weights."""
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="module")
def engine(serve_model: Path, serve_cache: Path) -> Iterator[Engine]:
    with Engine(str(serve_model), cache_dir=str(serve_cache), slots=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Running]:
    with running(engine) as found:
        yield found
