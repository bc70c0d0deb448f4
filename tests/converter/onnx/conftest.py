"""Directories for other people's programs, and transformers.js."""

import json
import shutil
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert
from tests.converter.onnx.programs import TRANSFORMERS_JS, ConvertedFixture, npm_modules


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """The module for Node."""
    name, version = TRANSFORMERS_JS
    return npm_modules(name, version) / name / "dist" / "transformers.node.mjs"


@pytest.fixture(scope="session")
def converted(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path, gemma_tokenizer: Path
) -> ConvertedFixture:
    """`converted("gemma3n", "int4")`: a trained fixture with Gemma's own chat template."""
    folder = tmp_path_factory.mktemp("onnx")
    template = json.loads((gemma_tokenizer / "tokenizer_config.json").read_text())["chat_template"]

    def make(family: str, precision: str) -> Path:
        checkpoint, out = folder / family, folder / f"{family}-{precision}"
        if not checkpoint.exists():
            shutil.copytree({"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n}[family], checkpoint)
            (checkpoint / "chat_template.jinja").write_text(template)
        if not out.exists():
            convert(f"custom-{precision}", checkpoint, out, context=512, format="onnx")
        return out

    return make
