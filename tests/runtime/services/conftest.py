"""An engine for the services, and a tiny random model that sees and hears."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma_edge.converter.convert import convert
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
def towers_bundle(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Path:  # noqa: ARG001  the tower is timm's
    from tools.tiny_towers import write_tiny_towers

    folder = tmp_path_factory.mktemp("towers")
    bundle = folder / "towers.litertlm"
    checkpoint = write_tiny_towers(folder / "checkpoint")
    convert("custom-fp32", checkpoint, bundle, prefill=(8, 32), context=512, modalities=("text", "vision", "audio"))
    return bundle


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
