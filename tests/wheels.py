"""A wheel of the sources as they lie here, committed or not."""

import shutil
from pathlib import Path

from tools.release.archives import build_wheel

LAYERS = ("profiles", "runtime", "converter")


def wheel_of_copy(repository: Path, work: Path) -> Path:
    """Built from a copy below `work`, beside tools and the demo that do not belong into it, with this setuptools."""
    source = work / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder in (*LAYERS, "tools", "android_demo"):
        shutil.copytree(repository / folder, source / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / file, source)
    return build_wheel(source, work / "wheel", isolated=False)
