"""Whose a cache folder is."""

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemma_edge.runtime.packing.folder import CacheFolderError, own_folder


def names_of(monkeypatch: pytest.MonkeyPatch, user: str, group: str, members: list[str]) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name=user))
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name=group, gr_mem=members))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_a_folder_of_ones_own_is_used_as_it_is(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir(mode)
    with own_folder(tmp_path / "cache") as folder:
        assert folder.path == tmp_path / "cache"
        assert folder.anchor.samefile(folder.path)
    assert not list((tmp_path / "cache").iterdir())


def test_it_is_made(tmp_path: Path) -> None:
    with own_folder(tmp_path / "a" / "b") as folder:
        assert folder.path == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o022 == 0


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    with own_folder(tmp_path / "cache") as folder:
        assert folder.path == tmp_path / "disk"


@pytest.mark.parametrize(
    ("user", "group", "members", "is_alone"),
    [
        ("ann", "ann", [], True),
        ("ann", "ann", ["ann"], True),
        ("ann", "ann", ["ann", "bob"], False),
        ("ann", "users", [], False),
        ("ann", "users", ["ann"], False),
    ],
)
def test_a_group_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, group: str, members: list[str], is_alone: bool
) -> None:
    """With umask 002 a home folder is writable by its user's own group: nothing changes for who has it so."""
    names_of(monkeypatch, user, group, members)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o775)
    with own_folder(tmp_path / "cache") as folder:
        assert (folder.path == tmp_path / "cache") == is_alone
        (folder.anchor / "weights").touch()
        (folder.anchor / "weights").chmod(0o664)
        assert (folder.own("weights") is not None) == is_alone
        assert (folder.anchor / "weights").exists() == is_alone  # what others may change is removed


def test_a_group_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> object:
        raise KeyError

    monkeypatch.setattr(grp, "getgrgid", unknown)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o2775)
    with own_folder(tmp_path / "cache") as folder:
        assert folder.path == tmp_path / "cache" / f"gemma-edge-{os.geteuid()}"


def test_a_list_of_who_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group's bits then are those of everybody on the list."""
    names_of(monkeypatch, "ann", "ann", [])
    monkeypatch.setattr(os, "listxattr", lambda _: ["system.posix_acl_access"])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o775)
    with own_folder(tmp_path / "cache") as folder:
        assert folder.path != tmp_path / "cache"


def test_without_proc_only_a_folder_of_ones_own_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_edge.runtime.packing.folder._DESCRIPTORS", tmp_path / "nothing")
    with own_folder(tmp_path / "own") as folder:
        assert folder.anchor == tmp_path / "own"
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(CacheFolderError) as caught, own_folder(tmp_path / "shared"):
        pytest.fail("not safe")
    assert str(caught.value) == (
        f"{tmp_path / 'shared'}: other users may write there, so what is packed goes into gemma-edge-{os.geteuid()} in "
        "it, which takes /proc to be safe; choose a cache_dir of your own"
    )


@pytest.mark.parametrize("kind", ["file", "loop", "below a file"])
def test_what_is_no_folder(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "cache"
    if kind == "loop":
        place.symlink_to(place)
    else:
        place.touch()
    with (
        pytest.raises(OSError, match=r"Not a directory|symbolic links|File exists"),
        own_folder(place / "x" if kind == "below a file" else place),
    ):
        pytest.fail("no folder")
