"""A tiny model with all towers, made once per test run."""

import pytest

from tests.runtime.media.towers import Towers


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Towers:  # noqa: ARG001  the vision tower is timm's
    return Towers.write(tmp_path_factory.mktemp("towers"))
