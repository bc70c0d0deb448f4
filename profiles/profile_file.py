"""Reads a profile's TOML file. Every complaint names file, line and key."""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemma_edge.profiles.plain_file import read_plain_text
from gemma_edge.profiles.schema import Architecture, DeviceProfile, Isa, ProfileError, shown
from gemma_edge.profiles.sizes import parse_size

_SOURCES = "sources"


def read_profile(path: Path) -> DeviceProfile:
    """The profile in `path`. Its name is the file's name without .toml.

    Raises ProfileError whose message starts with "FILE:LINE KEY:", or "FILE KEY:" for what is absent.
    """
    try:
        text = read_plain_text(path)
    except OSError as error:
        raise ProfileError("profile", f"{error.strerror or error}", "a readable TOML file", str(path)) from error
    except UnicodeDecodeError as error:
        raise ProfileError("profile", f"a byte that is not UTF-8 at {error.start}", "a TOML file", str(path)) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # tomllib's message ends with "(at line 3, column 5)".
        line = re.search(r"line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        raise ProfileError("syntax", str(error), "TOML; profiles/FORMAT.md shows a file", where) from error
    try:
        return DeviceProfile(name=path.stem, **_fields(table))
    except ProfileError as error:
        line_number = _line_of(text, error.key)
        raise error.at(f"{path}:{line_number}" if line_number else str(path)) from None


def _fields(table: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments. Raises ProfileError without a place."""
    for key in table:
        if key not in _READERS and key != _SOURCES:
            raise ProfileError(key, "an unknown key", f"one of {', '.join([*_READERS, _SOURCES])}")
    for key in _READERS:
        if key not in table:
            raise ProfileError(key, "nothing", "a value; profiles/FORMAT.md describes the key")
    values = {key: read(key, table[key]) for key, read in _READERS.items()}
    values[_SOURCES] = _sources(table.get(_SOURCES, {}))
    return values


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ProfileError(key, shown(value), "a string")
    return value


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProfileError(key, shown(value), "an integer")
    return value


def _size(key: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    expected = 'a size such as "2 GiB" or "17 GB", or an integer number of bytes'
    if not isinstance(value, str):
        raise ProfileError(key, shown(value), expected)
    try:
        return parse_size(value)
    except ValueError:
        raise ProfileError(key, shown(value), expected) from None


def _architecture(key: str, value: object) -> Architecture:
    try:
        return Architecture(_text(key, value))
    except ValueError:
        raise ProfileError(key, shown(value), f"one of {', '.join(Architecture)}") from None


def _isa(key: str, value: object) -> tuple[Isa, ...]:
    if not isinstance(value, list):
        raise ProfileError(key, shown(value), 'a list such as ["neon", "dotprod"]')
    features = []
    for item in value:
        try:
            features.append(Isa(item))
        except ValueError:
            raise ProfileError(key, shown(item), f"a list of {', '.join(Isa)}") from None
    return tuple(features)


def _sources(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ProfileError(_SOURCES, shown(value), "a table [sources] of key = where its value comes from")
    for key, source in value.items():
        if key not in _READERS:
            raise ProfileError(f"{_SOURCES}.{key}", "an unknown key", f"one of {', '.join(_READERS)}")
        _text(f"{_SOURCES}.{key}", source)
    return dict(value)


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "description": _text,
    "architecture": _architecture,
    "isa": _isa,
    "cores": _count,
    "ram_bytes": _size,
    "budget_bytes": _size,
    "memory_bytes_per_s": _size,
    "storage_bytes_per_s": _size,
}


def _line_of(text: str, key: str) -> int | None:
    """The 1-based line that sets `key` ("cores", "sources.cores"), None when no line does.

    tomllib keeps no positions. The format has one flat table and [sources], so a scan for "key =" under the right
    header finds every key; a key spelled in a way the scan misses costs the line number, not the message.
    """
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*(?P<name>[^\]]+?)\s*\]+", line):
            table = f"{header['name']}."
            found = header["name"]
        elif assignment := re.match(r"""\s*(?P<key>[\w."'-]+)\s*=""", line):
            found = table + re.sub("[\"']", "", assignment["key"])
        else:
            continue
        if found == key:
            return number
    return None
