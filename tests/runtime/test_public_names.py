"""The names of `gemma_edge.runtime`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_edge import runtime


def test_every_name_is_there_and_known_to_type_checkers() -> None:
    tree = ast.parse(Path(str(runtime.__file__)).read_text())
    typed = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gemma_edge.")
        for alias in node.names
    }
    assert typed == set(runtime._HOMES)
    assert set(runtime.__all__) == typed
    second = {"AbstractBenchmark", "AbstractConversation", "AbstractEngine", "AbstractSession", "ModelType"}
    for name in typed:
        assert (getattr(runtime, str(name)).__name__ == name) is (name not in second)
        assert name in dir(runtime)
    with pytest.raises(AttributeError, match="has no attribute 'Motor'"):
        _ = runtime.Motor


def test_importing_the_package_loads_nothing() -> None:
    program = "import sys, gemma_edge.runtime\nassert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
