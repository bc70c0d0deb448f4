"""Flatbuffers that someone else may have made: verified first, then read by the names of their fields.

Python's flatbuffers package and LiteRT follow every offset blindly: out of the buffer, into each other, or to one
table ten thousand times over. `verify` follows each offset once, as the C++ library's Verifier does
(github.com/google/flatbuffers, include/flatbuffers/verifier.h). Only tables and the lengths of vectors are read, never
what a vector of numbers holds, so that a model of gigabytes costs no more than its tables. `root_of` reads: the classes
that flatc generates for TFLite do as well, but take 3 MiB of every process, which is more than a small model's tables.

The tables are data, flatbuffer_schemas.txt, one a line: its name, then field:kind of each slot.
    i4=1        a number of so many bytes: i, u, f, or b for truth; 1 where it is not written, else 0
    s           a string
    Name        a table
    *i4 *s *Name a vector of numbers, of strings, of tables
    ?Name       a union; the slot before says which of its members, which the line `Name?:` lists
    -           instead of field:kind, a slot that nothing writes or reads any more
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from mmap import mmap
from typing import Any, Final, NamedTuple, TypeAlias, overload

Buffer: TypeAlias = "bytes | bytearray | memoryview | mmap"

MOST_PARTS: Final = 2_000_000
"""Tables and strings of one flatbuffer, each counted as often as it is referred to. E2B's decoder has 51,000."""
_DEEPEST: Final = 16  # LiteRT's go 5 deep

_U16, _U32, _I32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")
_FORMATS: Final[Mapping[str, Any]] = {  # of a number, as struct and memoryview call it
    "b1": "?",
    "i1": "b",
    "u1": "B",
    "i2": "h",
    "u2": "H",
    "i4": "i",
    "u4": "I",
    "i8": "q",
    "u8": "Q",
    "f4": "f",
    "f8": "d",
}
_NUMBERS: Final = {kind: struct.Struct(f"<{letter}") for kind, letter in _FORMATS.items()}


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


class _Slot(NamedTuple):
    """A slot of a table. absent: what a reader gets where it is not written."""

    field: str
    kind: str
    absent: Any

    @property
    def width(self) -> int:
        """Bytes in the table itself: of a number, or of an offset."""
        return _NUMBERS[self.kind].size if self.kind in _NUMBERS else 4


@cache
def _schemas() -> Mapping[str, str]:
    """The slots of each table, and the members of each union behind its name and "?"."""
    lines = (files("gemma_edge.runtime.formats") / "flatbuffer_schemas.txt").read_text("ascii").splitlines()
    return {name: slots for name, _, slots in (line.partition(":") for line in lines)}


@cache
def _slots(name: str) -> tuple[_Slot, ...]:
    """The slots of a table; one that is not used has no kind."""
    return tuple(_slot(*item.partition(":")[::2]) for item in _schemas()[name].split())


def _slot(field: str, described: str) -> _Slot:
    kind, _, default = described.partition("=")
    absent: Any = None
    if kind in _NUMBERS:
        absent = {"b": bool, "f": float}.get(kind[0], int)(float(default or 0))
    elif kind.startswith("*"):
        absent = memoryview(b"").cast(_FORMATS[kind[1:]]) if kind[1:] in _FORMATS else ()
    return _Slot(field, kind, absent)


@cache
def _members(union: str) -> Sequence[str]:
    return _schemas()[f"{union}?"].split()


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
        offsets = []
        for index, (place, slot) in enumerate(zip(places, _slots(name), strict=False)):
            if not place or not slot.kind:
                continue
            if not 4 <= place <= size - slot.width:
                raise FlatbufferError(f"{what} puts slot {index} at byte {place} of {size}")
            if slot.kind not in _NUMBERS:
                offsets.append((place, slot.kind, places[index - 1] if slot.kind[0] == "?" else 0))
        return size, tuple(offsets)

    def _slot(self, at: int, slot: str, chooser: int, depth: int) -> None:
        target = at + int(_U32.unpack_from(self._buffer, at)[0])
        if slot == "s":
            self._string(target)
        elif slot[0] == "*":
            self._vector(target, slot[1:], depth)
        elif slot[0] == "?":
            members = _members(slot[1:])
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
        number = _NUMBERS.get(item)
        self._inside(at + 4, count * (number.size if number else 4), f"a vector of {count} at byte {at}")
        if number:
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


# ---------------------------------------------------------------- reader


class Table:
    """A table. Its fields are attributes, by the names of flatbuffer_schemas.txt: `tensor.quantization.scale`.

    A number, or its default where none is written; a string as bytes; a table, a union's member among them; a vector as
    a memoryview of numbers that copies nothing, or as `Parts`. A string or table that is not there is None, a vector
    empty. Offsets are followed as they are: read what is verified, or be ready for any error.
    """

    __slots__ = ("_at", "_layout", "_name", "_source")

    def __init__(self, source: "_Source", at: int, name: str) -> None:
        self._source, self._at, self._name = source, at, name
        self._layout = source.layout(at - _I32.unpack_from(source.view, at)[0], name)

    def __getattr__(self, field: str) -> Any:
        found = self._layout.get(field)
        if found is None:
            raise AttributeError(f"a {self._name} has no {field}, only {', '.join(self._layout)}")
        place, kind, absent, chooser = found
        if not place:
            return absent
        if kind in _NUMBERS:
            return _NUMBERS[kind].unpack_from(self._source.view, self._at + place)[0]
        if kind[0] == "?":
            choice = self._source.view[self._at + chooser] if chooser else 0
            if not choice:
                return None
            kind = _members(kind[1:])[choice - 1]
        return self._source.part(self._at + place, kind)


class Parts(Sequence[Any]):
    """A vector of tables or strings, read one by one."""

    def __init__(self, source: "_Source", at: int, kind: str) -> None:
        self._source, self._first, self._kind = source, at + 4, kind
        self._count: int = _U32.unpack_from(source.view, at)[0]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"{index} of {self._count}")
        return self._source.part(self._first + 4 * (index % self._count), self._kind)

    def __iter__(self) -> Iterator[Any]:
        for place in range(self._first, self._first + 4 * self._count, 4):
            yield self._source.part(place, self._kind)


class _Source:
    """A buffer, and where the fields of its tables are: (place in the table or 0, kind, absent, place of a choice)."""

    def __init__(self, buffer: Buffer) -> None:
        self.view = memoryview(buffer)
        self._layouts: dict[tuple[int, str], dict[str, tuple[int, str, Any, int]]] = {}

    def layout(self, vtable: int, name: str) -> dict[str, tuple[int, str, Any, int]]:
        """Of the tables of that name that use this vtable."""
        known = self._layouts.get((vtable, name))
        if known is None:
            slots = _slots(name)
            count = min((_U16.unpack_from(self.view, vtable)[0] - 4) // 2, len(slots))
            places = [*struct.unpack_from(f"<{count}H", self.view, vtable + 4), *[0] * (len(slots) - count)]
            known = self._layouts[vtable, name] = {
                slot.field: (place, slot.kind, slot.absent, places[index - 1] if slot.kind[0] == "?" else 0)
                for index, (place, slot) in enumerate(zip(places, slots, strict=True))
                if slot.kind
            }
        return known

    def part(self, at: int, kind: str) -> Any:
        """What the offset at that byte leads to."""
        at += _U32.unpack_from(self.view, at)[0]
        if kind == "s":
            return bytes(self.numbers(at, "u1"))
        if kind[0] != "*":
            return Table(self, at, kind)
        return self.numbers(at, kind[1:]) if kind[1:] in _FORMATS else Parts(self, at, kind[1:])

    def numbers(self, at: int, kind: str) -> memoryview:
        """A vector of numbers."""
        end = at + 4 + _U32.unpack_from(self.view, at)[0] * _NUMBERS[kind].size
        values: memoryview = self.view[at + 4 : end].cast(_FORMATS[kind])
        return values


def root_of(buffer: Buffer, name: str) -> Table:
    """The root table of a flatbuffer, of that name."""
    source = _Source(buffer)
    return Table(source, _U32.unpack_from(source.view, 0)[0], name)


def kind_of(table: Table) -> str:
    """The name of its kind of table: which member of a union it is."""
    return table._name  # every other attribute is a field
