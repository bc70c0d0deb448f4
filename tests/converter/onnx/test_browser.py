"""Directories in a browser: transformers.js as it comes, in headless Chromium."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.converter.onnx.programs import (
    MESSAGES,
    NEW_TOKENS,
    PLAYWRIGHT,
    TRANSFORMERS_JS,
    ConvertedFixture,
    check_answer,
    npm_modules,
)

SCRIPT = Path(__file__).with_name("browser.mjs")
DIRECTORIES = [(family, precision) for family in ("gemma3", "gemma3n") for precision in ("fp32", "int8", "int4")]


@pytest.mark.parametrize(
    ("device", "directories"),
    # On this device all work is done by SwiftShader, without a graphics card: slowly. It multiplies int4 with floats.
    [("wasm", DIRECTORIES), ("webgpu", [("gemma3", "fp32")])],
    ids=["wasm", "webgpu"],
)
def test_a_browser_gives_our_tokens(
    converted: ConvertedFixture, device: str, directories: list[tuple[str, str]]
) -> None:
    """Of two messages of unequal length at once."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium, the browser, is not installed")
    modules, playwright = npm_modules(*TRANSFORMERS_JS), npm_modules(*PLAYWRIGHT) / PLAYWRIGHT[0] / "index.js"
    paths = [converted(*directory) for directory in directories]
    jobs = [
        {"directory": path.name, "device": device, "padding": "left", "messages": MESSAGES, "tokens": NEW_TOKENS}
        for path in paths
    ]
    command = ["node", str(SCRIPT), str(modules), str(playwright), browser, str(paths[0].parent)]
    ran = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)
    for answer, path, (_, precision) in zip(answers, paths, directories, strict=True):
        check_answer(answer, MESSAGES, path, precision)
