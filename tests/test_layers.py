"""The direction of imports: profiles <- runtime <- converter <- tools, tests."""

import ast
from collections.abc import Iterator
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


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import in a module of `package`, those inside functions included."""
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
    """What a module of `package` imports against the rules."""
    rooms = [names for room, names in ALLOWED_ROOMS.items() if _is_within(package, (room,))]
    allowed = rooms[0] if rooms else ALLOWED[package.split(".")[1]]
    return [
        f"line {line}: {name}"
        for line, name in _imports(ast.parse(source), package)
        if (_is_within(name, ("gemma_edge",)) and not _is_within(name, allowed))
        or _is_within(name, (*TESTS_ONLY, *ALLOWED, "tests", "tools"))
    ]


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


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("gemma_edge.profiles", "import gemma_edge.runtime.engine"),
        ("gemma_edge.profiles", "from ..runtime import engine"),
        ("gemma_edge.runtime", "from gemma_edge.converter.plan import plan"),
        ("gemma_edge.runtime", "def f():\n    import torch"),
        ("gemma_edge.converter", "from gemma_edge.runtime import engine"),
        ("gemma_edge.converter", "from gemma_edge import runtime"),
        ("gemma_edge.converter.models", "from ...runtime.executors import litert"),
        ("gemma_edge.converter", "import runtime.formats"),
        ("gemma_edge.converter", "from tests import conftest"),
        ("gemma_edge.converter.verify", "import torch"),
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
        ("gemma_edge.runtime", "from gemma_edge.profiles.errors import GemmaEdgeError"),
        ("gemma_edge.runtime", "import numpy, tokenizers"),
    ],
)
def test_the_walk_lets_allowed_imports_pass(package: str, source: str) -> None:
    assert not _forbidden(source, package)
