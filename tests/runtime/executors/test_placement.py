"""Where packed weights go."""

from pathlib import Path

import pytest

from gemma_edge.runtime.executors import placement
from gemma_edge.runtime.executors.placement import NO_CACHE, cache_folder, is_memory

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/vdb /tmp/on\\040disk ext4 rw 0 0
overlay /over overlay rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/data/x", False), ("/tmp/x/y", True), ("/tmpx/y", False), ("/tmp/on disk/x", False), ("/over/x", False)],
)
def test_memory_or_disk(tmp_path: Path, path: str, expected: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert is_memory(Path(path), mounts) is expected


def test_without_proc_nothing_is_known_to_be_memory(tmp_path: Path) -> None:
    assert not is_memory(tmp_path, tmp_path / "missing")


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    default, bundle = tmp_path / "home" / "gemma-edge", tmp_path / "models" / "m.litertlm"
    assert cache_folder(NO_CACHE, bundle, prefer_disk=True) is None
    assert cache_folder("here", bundle, prefer_disk=True) == Path("here")
    monkeypatch.setattr(placement, "is_memory", lambda path: path == default)
    assert cache_folder(None, bundle, prefer_disk=False) == default
    assert cache_folder(None, bundle, prefer_disk=True) == bundle.parent
    monkeypatch.setattr(placement, "is_memory", lambda _: True)
    assert cache_folder(None, bundle, prefer_disk=True) == default
