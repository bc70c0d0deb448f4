"""A phone, as fake_adb.sh shows it."""

import os
import shutil
from pathlib import Path

import pytest

from tests.android.phones import READY


@pytest.fixture
def phone_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A phone with nothing on it, connected; adb is the fake one."""
    folder = tmp_path / "phone"
    (folder / "data").mkdir(parents=True)
    (folder / "devices").write_text(READY)
    programs = tmp_path / "bin"
    programs.mkdir()
    shutil.copy(Path(__file__).with_name("fake_adb.sh"), programs / "adb")
    monkeypatch.setenv("FAKE_PHONE", str(folder))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return folder
