"""What CONTRIBUTING says of the code is there: its files, and the names that its walks pass through."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_STATIONS = 12
WALKS = ("One weight, from safetensors to the bundle", "One token, from `send_message` to the screen")
_STATION = re.compile(r"(?m)^\d+\. (.*(?:\n {3}.*)*)")
_QUOTED = re.compile(r"`([^`]+)`")


def _section(repository: Path, title: str) -> str:
    """The text below a heading, up to the next one."""
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"(?ms)^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text)
    return str(found)


def _named(text: str) -> list[str]:
    """What stands between backquotes."""
    return _QUOTED.findall(text)


def _resolved(names: list[str], repository: Path) -> Iterator[tuple[str, Path | None]]:
    """Each file's path: from the repository, from the layer that the walk begins in, or beside the one named before."""
    layer, folder = repository / names[0].split("/")[0], repository
    for name in (name for name in names if name.endswith(".py")):
        places = [root / name for root in (repository, layer, folder)]
        found = next((place for place in places if place.is_file()), None)
        yield name, found
        if found is not None:
            folder = found.parent


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_has_few_stations_and_every_file_of_it_exists(repository: Path, walk: str) -> None:
    stations = _STATION.findall(_section(repository, walk))
    assert 2 < len(stations) <= MOST_STATIONS
    assert all(any(name.endswith(".py") for name in _named(station)) for station in stations), "a station is a file"
    resolved = list(_resolved(_named("\n".join(stations)), repository))
    assert not [name for name, path in resolved if path is None]


@pytest.mark.parametrize("walk", WALKS)
def test_what_a_walk_passes_through_is_in_its_files(repository: Path, walk: str) -> None:
    text = _section(repository, walk)
    paths = [path for _, path in _resolved(_named("\n".join(_STATION.findall(text))), repository) if path is not None]
    code = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    names = {part for name in _named(text) if not name.endswith((".py", "/")) for part in re.findall(r"\w+", name)}
    assert len(names) > 2
    assert not {name for name in names if not re.search(rf"\b{name}\b", code)}


def test_every_path_of_the_other_sections_exists(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:converter|runtime|profiles|tools|tests)/[\w./*-]+)`", text)
    assert len(paths) > 20
    assert not [path for path in paths if not list(repository.glob(path))]
