"""Print runtime/formats/flatbuffer_schemas.txt, from the modules that flatc generated.

    python -m tools.flatbuffer_schema > runtime/formats/flatbuffer_schemas.txt

The generated accessors are code, not data: which slot of a table holds what is read off their bodies. A test compares
the result with the file, so an update of ai-edge-litert or litert-lm-builder that changes a table is noticed.
"""

import inspect
import re
from types import ModuleType

import click

_CLASS = re.compile(r"^class (\w+)\(object\):\n(.*?)(?=^class |^def \w+Start\(|\Z)", re.MULTILINE | re.DOTALL)
_METHOD = re.compile(r"^    def (\w+)\(self.*?\):\n(.*?)(?=^    # |^    def |\Z)", re.MULTILINE | re.DOTALL)
_CREATOR = re.compile(r"^def (\w+)Creator\(unionType, table\):\n(.*?)(?=^\S)", re.MULTILINE | re.DOTALL)
_MEMBER = re.compile(r"unionType == \w+\.(\w+):\n\s+return (\w+)T\.InitFromBuf")
_UNPACKED = re.compile(r"(\w+)Creator\(self\.\w+, (?P<var>\w+)\.(\w+)\(\)\)")
_NUMBER = re.compile(r"number_types\.(\w)\w*?(\d*)Flags, (?:o|a) \+")
_DEFAULT = re.compile(r"return ([-\w.]+)\n*\Z")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # of a camel


def schema_of(module: ModuleType) -> dict[str, str]:
    """Each table's slots, and each union's members, as runtime/formats/flatbuffer.py explains them."""
    source = inspect.getsource(module)
    classes = dict(_CLASS.findall(source))
    unions = dict(_CREATOR.findall(source))
    lines: dict[str, str] = {}
    for name, body in classes.items():
        if "_tab" not in body:
            continue
        union_of = {field: union for union, _, field in _UNPACKED.findall(_unpacked(source, name))}
        found = (_slot(method, inside, union_of) for method, inside in _METHOD.findall(body))
        slots = dict(slot for slot in found if slot is not None)
        lines[name] = " ".join(slots.get(number, "-") for number in range(max(slots, default=-1) + 1))
    for creator, body in unions.items():
        union = next(name for name in vars(module) if name.lower() == creator.lower())  # VData, but VdataCreator
        values = vars(getattr(module, union)).items()
        numbers = {value: name for name, value in values if isinstance(value, int) and not name.startswith("__")}
        members = dict(_MEMBER.findall(body))
        lines[f"{union}?"] = " ".join(members[numbers[number]] for number in range(1, len(numbers)))
    return lines


def _unpacked(source: str, name: str) -> str:
    found = re.search(rf"^class {name}T\(object\):\n(.*?)(?=^class |\Z)", source, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _slot(method: str, body: str, union_of: dict[str, str]) -> tuple[int, str] | None:
    """(slot, its name and what it holds) of an accessor; None of helpers such as DataLength."""
    offset = re.search(r"self\._tab\.Offset\((\d+)\)", body)
    if offset is None or method.endswith(("AsNumpy", "Length", "IsNone")):
        return None
    return (int(offset[1]) - 4) // 2, f"{_HUMP.sub('_', method).lower()}:{_kind(method, body, union_of)}"


def _kind(method: str, body: str, union_of: dict[str, str]) -> str:
    table = re.search(r"obj = (\w+)\(\)", body)
    if "_tab.Union(" in body:
        return f"?{union_of[method]}"
    many = "*" if "_tab.Vector(" in body else ""
    if table is not None:
        return many + table[1]
    if "_tab.String(" in body:
        return f"{many}s"
    number, default = _NUMBER.search(body), _DEFAULT.search(body)
    assert number is not None, (method, body)
    assert default is not None, (method, body)
    # Bool has no digits, and one byte.
    kind = f"{many}{number[1].lower()}{int(number[2] or 8) // 8}"
    value = float({"False": "0", "True": "1"}.get(default[1], default[1]))
    return kind if many or not value else f"{kind}={value:g}"


def schemas() -> str:
    """The whole file: the header of a bundle, and TFLite's model."""
    import litert_lm_builder.litertlm_header_schema_py_generated as header
    from ai_edge_litert import schema_py_generated as tflite

    lines = (f"{name}: {slots}".rstrip() for module in (header, tflite) for name, slots in schema_of(module).items())
    return "\n".join(lines) + "\n"


@click.command()
def main() -> None:
    """Print what the generated modules say of their tables."""
    click.echo(schemas(), nl=False)


if __name__ == "__main__":
    main()
