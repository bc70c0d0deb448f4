"""Paths with a ~ that no shell has taken."""

from pathlib import Path

import pytest

from gemma_edge.profiles.paths import PathError, user_path


@pytest.mark.parametrize(
    ("given", "found"),
    [("~/a", "{home}/a"), ("~", "{home}"), ("~root/a", "/root/a"), ("a/~/b", "a/~/b"), ("a~", "a~"), ("/a", "/a")],
)
def test_as_a_shell_takes_it(given: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path(given) == Path(found.format(home=tmp_path))
    assert user_path(Path(given)) == Path(found.format(home=tmp_path))


@pytest.mark.parametrize("name", ["~", "~a", "~/a"])
def test_what_is_really_called_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    assert user_path(name) == Path(name)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/a", "~x y", "~nobody-of-that-name"])
def test_nobody_of_that_name(name: str) -> None:
    with pytest.raises(PathError) as caught:
        user_path(name)
    home = name.partition("/")[0]
    assert str(caught.value) == f"{name}: there is no home folder {home}; write the path without it, from /"
