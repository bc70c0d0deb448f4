"""The accessors that flatc generated, as the oracle of what we read from a flatbuffer."""

from types import ModuleType
from typing import Any

from gemma_edge.runtime.formats import flatbuffer
from gemma_edge.runtime.formats.flatbuffer import Table, kind_of


def compared(ours: Table, theirs: Any, module: ModuleType) -> int:
    """How many fields were compared, of a table and of all that it leads to. Fails where one is not equal."""
    methods = {name.lower(): name for name in dir(theirs)}
    count = 0
    for slot in flatbuffer._slots(kind_of(ours)):
        if not slot.kind:
            continue
        name, value = methods[slot.field.replace("_", "")], getattr(ours, slot.field)
        where = f"{kind_of(ours)}.{slot.field}"
        count += 1
        if isinstance(value, memoryview):
            array = getattr(theirs, f"{name}AsNumpy")()
            assert bytes(value) == (b"" if isinstance(array, int) else array.tobytes()), where
            assert len(value) == getattr(theirs, f"{name}Length")(), where
        elif slot.kind[0] == "*":
            assert len(value) == getattr(theirs, f"{name}Length")(), where
            for i, part in enumerate(value):
                count += _same(part, getattr(theirs, name)(i), module, where)
        elif slot.kind[0] == "?" and value is None:  # nothing is chosen, whatever lies there
            assert getattr(theirs, name)() is None or getattr(theirs, f"{name}Type")() == 0, where
        else:
            count += _same(value, getattr(theirs, name)(), module, where)
    return count


def _same(ours: Any, theirs: Any, module: ModuleType, where: str) -> int:
    if not isinstance(ours, Table):
        assert type(ours) is type(theirs), where
        assert repr(ours) == repr(theirs), where  # a number may be no number
        return 0
    if not hasattr(theirs, "Init"):  # a union, which has no type of its own
        member = getattr(module, kind_of(ours))()
        member.Init(theirs.Bytes, theirs.Pos)
        theirs = member
    assert type(theirs).__name__ == kind_of(ours), where
    return compared(ours, theirs, module)
