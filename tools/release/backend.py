"""What builds gemma-edge: setuptools, made to write the same bytes for the same sources (PEP 517, `backend-path`).

setuptools puts times, owners and modes of the machine into its archives, and guesses what a source archive needs.
hatchling and uv_build, whose archives are reproducible, cannot install our folders in place under gemma_edge.
Compared bytes need the same zlib, that is, the same build of Python. Here nothing of gemma_edge can be imported yet.
"""

import gzip
import os
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

EPOCH: Final = int(os.environ.setdefault("SOURCE_DATE_EPOCH", "1767225600"))
"""Of every file in both archives: 2026-01-01, or what the builder says (reproducible-builds.org/specs)."""
_Settings = Mapping[str, str | list[str] | None] | None


def build_sdist(sdist_directory: str, config_settings: _Settings = None) -> str:
    """Every file that git tracks, as it lies here, and PKG-INFO; the archive's name. Needs a checkout and git."""
    with tempfile.TemporaryDirectory() as folder:
        info = prepare_metadata_for_build_wheel(folder, config_settings)
        root = info.removesuffix(".dist-info")
        metadata = Path(folder, info, "METADATA").rename(Path(folder, "PKG-INFO"))
        listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
        files = {f"{root}/{name}": Path(name) for name in listed.split("\0") if name and os.path.lexists(name)}
        files[f"{root}/PKG-INFO"] = metadata
        path = Path(sdist_directory, f"{root}.tar.gz")
        with (
            path.open("wb") as out,
            gzip.GzipFile("", "wb", fileobj=out, mtime=EPOCH) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(files):
                archive.add(files[name], name, recursive=False, filter=_of_nobody)
    return path.name


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    mode = 0o755 if entry.issym() or entry.mode & 0o100 else 0o644
    return entry.replace(mtime=EPOCH, mode=mode, uid=0, gid=0, uname="", gname="", deep=False)


def build_wheel(wheel_directory: str, config_settings: _Settings = None, metadata_directory: str | None = None) -> str:
    """setuptools' wheel, its files readable by all; its name."""
    with tempfile.TemporaryDirectory() as folder:
        _build_below(Path(folder))
        name: str = build_meta.build_wheel(folder, config_settings, metadata_directory)
        with zipfile.ZipFile(Path(folder, name)) as built, zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
            for entry in built.infolist():
                entry.external_attr = 0o100644 << 16
                wheel.writestr(entry, built.read(entry))
    return name


def _build_below(folder: Path) -> None:
    """Not in build/ of the sources, where modules lie that are gone by now (a setting that setuptools documents)."""
    settings = folder / "setup.cfg"
    settings.write_text(f"[build]\nbuild_base = {folder / 'build'}\n", encoding="utf-8")
    os.environ["DIST_EXTRA_CONFIG"] = str(settings)
