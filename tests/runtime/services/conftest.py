"""An engine for the services, a picture and a recording."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.media.audio import wav_bytes


@pytest.fixture(scope="session")
def services_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def engine(tiny_bundle: Callable[[str, str], Path], services_cache: str) -> Iterator[Engine]:
    with Engine(str(tiny_bundle("gemma3n", "int4")), cache_dir=services_cache) as engine:
        yield engine


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half of a tone."""
    path = tmp_path_factory.mktemp("media") / "meeting.wav"
    path.write_bytes(wav_bytes(0.3 * np.sin(np.arange(24_000) / 9).astype(np.float32)))
    return path
