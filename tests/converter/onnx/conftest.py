"""transformers.js, installed once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE, VERSION = "@huggingface/transformers", "4.3.1"


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """The module, from npm, kept between runs. No package runs code of its own at installation."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gemma-edge-tests" / f"js-{VERSION}"
    module = cache / "node_modules" / PACKAGE / "dist" / "transformers.node.mjs"
    if not all(map(shutil.which, ("node", "npm"))):
        pytest.skip(f"node and npm, which run {PACKAGE}, are not installed")
    if not module.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        staged = cache.with_name(f"{cache.name}.{os.getpid()}")
        staged.mkdir()
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"{PACKAGE}@{VERSION}"]
        subprocess.run(command, cwd=staged, check=True, capture_output=True)
        staged.rename(cache)
    return module
