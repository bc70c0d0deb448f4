"""The direction of imports: profiles <- runtime <- converter <- tools, tests, and from room to room inside a layer."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

# What modules of a layer may import of gemma_edge, as prefixes of module names.
ALLOWED = {
    "profiles": ("gemma_edge.profiles",),
    "runtime": ("gemma_edge.profiles", "gemma_edge.runtime"),
    "converter": ("gemma_edge.profiles", "gemma_edge.runtime.formats", "gemma_edge.converter"),
}
# Where a converted model and its checkpoint meet.
ALLOWED_ROOMS = {"gemma_edge.converter.verify": (*ALLOWED["converter"], "gemma_edge.runtime")}
# The conversion path and the runtime run without them; tests compare against them.
TESTS_ONLY = ("torch", "transformers", "safetensors")

# From left to right: a room imports only itself and rooms to its left. Of a folder and something in it, a module
# belongs to the longer name: "checkpoint" is what is left of that folder.
ROOMS = {
    "runtime": [
        "config", "formats", "android", "memory", "packing", "text", "media",
        "executors/base", "executors/checks", "executors/run_plan", "executors/rows",
        "executors/litert", "executors/onnx", "executors",
        "kv", "chat", "settings", "engine_memory", "engine", "cache", "litert_lm_engine",
        "measure", "measure/pytest_plugin", "cli", "tasks",
        "serve/errors", "serve/events", "serve/hooks", "serve/guard", "serve/page", "serve/monitor", "serve/settings",
        "serve/deploy", "serve", "services", "litert_lm_names", "__init__",
    ],
    "converter": [
        "__init__", "printing", "progress", "tensors", "graph", "models", "tokenizer",
        "checkpoint/scratch", "checkpoint/safetensors_file", "checkpoint/origin", "checkpoint/gguf", "checkpoint",
        "evaluate", "quantize", "plan", "calibrate", "quality", "litert", "onnx", "gguf",
        "compressed_tensors",
        "verify/errors", "verify/measure", "verify/find", "verify/prompts", "verify/show", "verify",
        "report", "identity", "convert", "provenance", "cli", "batch", "__main__",
    ],
}  # fmt: skip
# (who imports, what): the reason. Arrows to the right that have to be.
EXCEPTIONS: Mapping[tuple[str, str], str] = {}
MOST_MODULES = 16  # of a folder, and
MOST_AT_THE_TOP = 8  # of a layer's own folder


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import in a module of `package`: in functions, and for type checkers, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from package import name` may name a sub-module.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _forbidden(source: str, package: str) -> list[str]:
    """What a module of `package` imports against the rules of layers."""
    rooms = [names for room, names in ALLOWED_ROOMS.items() if _is_within(package, (room,))]
    allowed = rooms[0] if rooms else ALLOWED[package.split(".")[1]]
    return [
        f"line {line}: {name}"
        for line, name in _imports(ast.parse(source), package)
        if (_is_within(name, ("gemma_edge",)) and not _is_within(name, allowed))
        or _is_within(name, (*TESTS_ONLY, *ALLOWED, "tests", "tools"))
    ]


def _modules(repository: Path) -> dict[str, Path]:
    """By dotted name, gemma_edge.converter.plan.fit; a package stands for its __init__."""
    paths = [path for layer in ALLOWED for path in (repository / layer).rglob("*.py")]
    dotted = {path: ".".join(("gemma_edge", *path.relative_to(repository).with_suffix("").parts)) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in dotted.items()}


def _arrows(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which of these modules each of them imports. sources: text by dotted name, of packages their __init__."""
    packages = {name.rpartition(".")[0] for name in sources}
    arrows: dict[str, set[str]] = {}
    for module, source in sources.items():
        package = module if module in packages else module.rpartition(".")[0]
        named = [name for _, name in _imports(ast.parse(source), package)]
        found = {name if name in sources else name.rpartition(".")[0] for name in named}
        arrows[module] = {name for name in found if name in sources and name != module}
    return arrows


def _room(module: str, rooms: list[str]) -> str:
    """Of gemma_edge.converter.plan.fit: "plan"."""
    place = "/".join(module.split(".")[2:]) or "__init__"
    fitting = [room for room in rooms if place == room or place.startswith(f"{room}/")]
    assert fitting, f"{module}: no room in the list of tests/test_layers.py; say where it belongs"
    return max(fitting, key=len)


def _to_the_right(arrows: Mapping[str, set[str]], layer: str) -> list[str]:
    """Imports of rooms further right, exceptions apart."""
    rooms, prefix = ROOMS[layer], f"gemma_edge.{layer}"
    return [
        f"{module} ({here}) imports {name} ({there})"
        for module, names in arrows.items()
        if _is_within(module, (prefix,))
        for name in sorted(names)
        if _is_within(name, (prefix,)) and (module, name) not in EXCEPTIONS
        for here, there in [(_room(module, rooms), _room(name, rooms))]
        if rooms.index(there) > rooms.index(here)
    ]


def _circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; none where there is no circle."""
    done: set[str] = set()
    for start in arrows:
        path, branches = [start], [iter(sorted(arrows[start]))]
        while path:
            name = next(branches[-1], None)
            if name is None:
                done.add(path.pop())
                branches.pop()
            elif name in path:
                return [*path[path.index(name) :], name]
            elif name not in done:
                path.append(name)
                branches.append(iter(sorted(arrows[name])))
    return []


@pytest.fixture(scope="module")
def arrows(repository: Path) -> dict[str, set[str]]:
    return _arrows({name: path.read_text(encoding="utf-8") for name, path in _modules(repository).items()})


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_point_one_way(repository: Path, layer: str) -> None:
    modules = sorted((repository / layer).rglob("*.py"))
    found = {}
    for path in modules:
        package = ".".join(("gemma_edge", *path.relative_to(repository).parent.parts))
        if wrong := _forbidden(path.read_text(encoding="utf-8"), package):
            found[str(path.relative_to(repository))] = wrong
    assert modules
    assert not found, f"{layer} may import {', '.join(ALLOWED[layer])}; found {found}"


@pytest.mark.parametrize("layer", ROOMS)
def test_a_room_imports_only_rooms_to_its_left(arrows: dict[str, set[str]], layer: str) -> None:
    assert not (wrong := _to_the_right(arrows, layer)), "\n".join(wrong)


def test_no_module_imports_itself_by_others(arrows: dict[str, set[str]]) -> None:
    assert len(arrows) > 200
    assert not (circle := _circle(arrows)), " -> ".join(circle)


def test_every_room_is_there(arrows: dict[str, set[str]]) -> None:
    for layer, rooms in ROOMS.items():
        used = {_room(name, rooms) for name in arrows if _is_within(name, (f"gemma_edge.{layer}",))}
        assert used == set(rooms)


def test_every_exception_is_needed(arrows: dict[str, set[str]]) -> None:
    for (module, name), reason in EXCEPTIONS.items():
        assert name in arrows[module], f"{module} does not import {name} any more: {reason}"


@pytest.mark.parametrize("layer", ROOMS)
def test_a_room_can_be_taken_in_at_a_glance(repository: Path, layer: str) -> None:
    folders = [path for path in (repository / layer, *(repository / layer).rglob("*")) if path.is_dir()]
    sizes = {path: sum(1 for file in path.glob("*.py") if file.name != "__init__.py") for path in folders}
    assert sizes.pop(repository / layer) <= MOST_AT_THE_TOP
    assert not {str(path): size for path, size in sizes.items() if size > MOST_MODULES}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("gemma_edge.profiles", "import gemma_edge.runtime.engine"),
        ("gemma_edge.profiles", "from ..runtime import engine"),
        ("gemma_edge.runtime", "from gemma_edge.converter import plan"),
        ("gemma_edge.runtime", "def f():\n    import torch"),
        ("gemma_edge.converter", "from gemma_edge.runtime import engine"),
        ("gemma_edge.converter", "from gemma_edge import runtime"),
        ("gemma_edge.converter.models", "from ...runtime.executors import litert"),
        ("gemma_edge.converter", "import runtime.formats"),
        ("gemma_edge.converter", "from tests import conftest"),
        ("gemma_edge.converter.verify", "import torch"),
        ("gemma_edge.converter.verify.find", "import torch"),
    ],
)
def test_the_walk_sees_forbidden_imports(package: str, source: str) -> None:
    assert _forbidden(source, package)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("gemma_edge.converter", "from gemma_edge.runtime.formats import encoding"),
        ("gemma_edge.converter", "from gemma_edge.runtime.formats.encoding import Encoding"),
        ("gemma_edge.converter.models", "from . import blocks"),
        ("gemma_edge.converter.verify", "from gemma_edge.runtime.executors.litert.decoder import LitertDecoder"),
        ("gemma_edge.converter.verify.find", "from gemma_edge.runtime.media.encoders import Encoders"),
        ("gemma_edge.runtime", "from gemma_edge.profiles.errors import GemmaEdgeError"),
        ("gemma_edge.runtime", "import numpy, tokenizers"),
    ],
)
def test_the_walk_lets_allowed_imports_pass(package: str, source: str) -> None:
    assert not _forbidden(source, package)


PLAN, FIT = "gemma_edge.converter.plan.plan", "gemma_edge.converter.plan.fit"
LOWER = "gemma_edge.converter.litert.lower"


@pytest.mark.parametrize(
    "source",
    [
        f"import {LOWER}",
        f"from {LOWER} import emit",
        "def f():\n    from gemma_edge.converter.litert import lower",
        "if TYPE_CHECKING:\n    from ..litert.lower import Signature",
    ],
)
def test_an_arrow_to_the_right_is_seen(source: str) -> None:
    [wrong] = _to_the_right(_arrows({PLAN: source, LOWER: ""}), "converter")
    assert wrong == f"{PLAN} (plan) imports {LOWER} (litert)"
    assert not _to_the_right(_arrows({PLAN: "", LOWER: f"import {PLAN}"}), "converter")


def test_a_circle_inside_a_room_is_seen() -> None:
    sources = {PLAN: "from gemma_edge.converter.plan import fit", FIT: "", LOWER: f"import {FIT}"}
    assert not _circle(_arrows(sources))
    assert _circle(_arrows(sources | {FIT: f"if TYPE_CHECKING:\n    from {PLAN} import Plan"})) == [PLAN, FIT, PLAN]


def test_a_module_without_a_room_is_refused() -> None:
    with pytest.raises(AssertionError, match="attic: no room in the list"):
        _to_the_right(_arrows({"gemma_edge.converter.attic": f"import {PLAN}", PLAN: ""}), "converter")
