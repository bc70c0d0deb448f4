"""The door to the formats: a model by its path, whatever it is stored as."""

from pathlib import Path
from typing import TypeAlias

from gemma_edge.profiles.paths import user_path
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory, is_onnx_directory

Model: TypeAlias = Bundle | OnnxDirectory


def open_model(path: Path) -> Model:
    """Raises BundleError, OnnxDirectoryError: neither a bundle nor an ONNX directory, or damaged. PathError."""
    path = user_path(path)
    return OnnxDirectory.open(path) if is_onnx_directory(path) else Bundle.open(path)
