"""Only files are read: a pipe would never answer, and a device never end."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.profiles.plain_file import open_plain, read_plain, read_plain_text, require_plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    listening.close()
    return tmp_path


@pytest.mark.parametrize("read", [open_plain, read_plain, read_plain_text, require_plain])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("folder", "a directory"), ("pipe", "a pipe"), ("link", "a pipe"), ("zero", "a device"), ("socket", "a socket")],
)
def test_what_is_no_file(folder: Path, name: str, kind: str, read: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match=f"{kind}, expected a file"):
        read(folder / name)


def test_a_file_that_becomes_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking and opening: opening does not wait either."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("gemma_edge.profiles.plain_file.require_plain", lambda _: None)
    with pytest.raises(OSError, match="a pipe, expected a file"):
        open_plain(tmp_path / "pipe")


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("é\r\nb\rc\n".encode())
    assert read_plain(tmp_path / "text") == "é\r\nb\rc\n".encode()
    assert read_plain_text(tmp_path / "text") == (tmp_path / "text").read_text("utf-8")
    with open_plain(tmp_path / "text") as file:
        assert file.read(2) == "é".encode()
    with pytest.raises(OSError, match="8 bytes, expected at most 7"):
        read_plain(tmp_path / "text", 7)
