"""Whether a flatbuffer that someone else may have made is one, told before anything reads it.

Python's flatbuffers package and LiteRT follow every offset blindly: out of the buffer, into each other, or to one
table ten thousand times over. Here each offset is followed once, as the C++ library's Verifier does
(github.com/google/flatbuffers, include/flatbuffers/verifier.h). Only tables and the lengths of vectors are read, never
what a vector of numbers holds, so that a model of gigabytes costs no more than its tables.

The tables are data, flatbuffer_schemas.txt, one a line: its name, then what each slot holds.
    4           a number of so many bytes
    s           a string
    Name        a table
    *4 *s *Name a vector of numbers, of strings, of tables
    ?Name       a union; the slot before says which of its members, which the line `Name?:` lists
"""

import struct
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from mmap import mmap
from typing import Final, TypeAlias

Buffer: TypeAlias = "bytes | bytearray | memoryview | mmap"

MOST_PARTS: Final = 2_000_000
"""Tables and strings of one flatbuffer, each counted as often as it is referred to. E2B's decoder has 51,000."""
_DEEPEST: Final = 16  # LiteRT's go 5 deep

_U16, _U32, _I32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")


class FlatbufferError(ValueError):
    """Not a flatbuffer of that kind, or more of one than anyone needs; the message says what is wrong, and where."""


def verify(buffer: Buffer, root: str, *, identifier: bytes = b"", most_parts: int = MOST_PARTS) -> int:
    """Follow every offset of a flatbuffer whose root is a table of that name; returns how many parts it has.

    identifier: four bytes that have to stand behind the root's offset.
    Raises FlatbufferError: an offset leaves the buffer, a string has no end, or there are more than most_parts.
    """
    if len(buffer) < 8:
        raise FlatbufferError(f"{len(buffer)} bytes, a flatbuffer has at least 8")
    if identifier and bytes(buffer[4:8]) != identifier:
        raise FlatbufferError(f"begins with {bytes(buffer[4:8])!r}, expected {identifier!r}")
    walk = _Walk(buffer, most_parts)
    walk.table(_U32.unpack_from(buffer, 0)[0], root, 0)
    return most_parts - walk.left


@cache
def _schemas() -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
    """Slots of each table, members of each union."""
    tables, unions = {}, {}
    for line in (files("gemma_edge.runtime.formats") / "flatbuffer_schemas.txt").read_text("ascii").splitlines():
        name, _, slots = line.partition(":")
        if name.endswith("?"):
            unions[name[:-1]] = slots.split()
        else:
            tables[name] = slots.split()
    return tables, unions


class _Walk:
    """One pass over a buffer. `left`: how many parts may still come."""

    def __init__(self, buffer: Buffer, most_parts: int) -> None:
        self._buffer = buffer
        self._end = len(buffer)
        self._most = self.left = most_parts
        self._known: dict[tuple[int, str], tuple[int, tuple[tuple[int, str, int], ...]]] = {}

    def table(self, at: int, name: str, depth: int) -> None:
        """A table at that byte. Recursion ends at `_DEEPEST`."""
        self._count()
        if depth > _DEEPEST:
            raise FlatbufferError(f"{name} at byte {at} lies {depth} tables deep")
        self._inside(at, 4, name)
        vtable = at - _I32.unpack_from(self._buffer, at)[0]
        known = self._known.get((vtable, name))
        if known is None:
            known = self._known[vtable, name] = self._vtable(vtable, name, at)
        size, offsets = known
        self._inside(at, size, name)
        for place, slot, chooser in offsets:
            self._slot(at + place, slot, at + chooser if chooser else 0, depth)

    def _vtable(self, vtable: int, name: str, at: int) -> tuple[int, tuple[tuple[int, str, int], ...]]:
        """Size of the tables that use it, and their offsets: where, what, and where the union's choice stands."""
        what = f"the vtable of {name} at byte {at}"
        self._inside(vtable, 4, what)
        nbytes, size = struct.unpack_from("<2H", self._buffer, vtable)
        if nbytes < 4 or nbytes % 2 or size < 4:
            raise FlatbufferError(f"{what} has {nbytes} bytes for a table of {size}")
        self._inside(vtable, nbytes, what)
        places = struct.unpack_from(f"<{(nbytes - 4) // 2}H", self._buffer, vtable + 4)
        slots = _schemas()[0][name]
        offsets = []
        for index, (place, slot) in enumerate(zip(places, slots, strict=False)):
            width = int(slot) if slot.isdigit() else 4
            if place and not 4 <= place <= size - width:
                raise FlatbufferError(f"{what} puts slot {index} at byte {place} of {size}")
            if place and not slot.isdigit():
                offsets.append((place, slot, places[index - 1] if slot[0] == "?" else 0))
        return size, tuple(offsets)

    def _slot(self, at: int, slot: str, chooser: int, depth: int) -> None:
        target = at + int(_U32.unpack_from(self._buffer, at)[0])
        if slot == "s":
            self._string(target)
        elif slot[0] == "*":
            self._vector(target, slot[1:], depth)
        elif slot[0] == "?":
            members = _schemas()[1][slot[1:]]
            choice = self._buffer[chooser] if chooser else 0
            if choice > len(members):
                raise FlatbufferError(f"byte {chooser} chooses member {choice} of {slot[1:]}, which has {len(members)}")
            if choice:
                self.table(target, members[choice - 1], depth + 1)
        else:
            self.table(target, slot, depth + 1)

    def _vector(self, at: int, item: str, depth: int) -> None:
        self._inside(at, 4, "a vector")
        count: int = _U32.unpack_from(self._buffer, at)[0]
        width = int(item) if item.isdigit() else 4
        self._inside(at + 4, count * width, f"a vector of {count} at byte {at}")
        if item.isdigit():
            return
        if count > self.left:
            raise FlatbufferError(f"a vector of {count} at byte {at}, expected at most {self.left} more parts")
        for place in range(at + 4, at + 4 + 4 * count, 4):
            self._slot(place, item, 0, depth)

    def _string(self, at: int) -> None:
        self._count()
        self._inside(at, 4, "a string")
        end = at + 4 + int(_U32.unpack_from(self._buffer, at)[0])
        self._inside(at, end + 1 - at, f"the string at byte {at}")
        if self._buffer[end]:
            raise FlatbufferError(f"the string at byte {at} has no end")

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise FlatbufferError(f"has more than {self._most} parts")

    def _inside(self, at: int, nbytes: int, what: str) -> None:
        if at < 0 or at + nbytes > self._end:
            raise FlatbufferError(f"{what} lies at bytes {at} to {at + nbytes} of {self._end}")
