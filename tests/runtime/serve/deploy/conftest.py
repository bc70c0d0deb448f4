"""The wheel that is deployed."""

from pathlib import Path

import pytest

from tests.wheels import wheel_of_copy


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of_copy(repository, tmp_path_factory.mktemp("wheel"))
