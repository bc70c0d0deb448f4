"""The weight files of a graph: that they are what was converted, and where they really lie."""

import os
from pathlib import Path

import onnx_ir

from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.onnx_digests import OnnxDirectoryError
from gemma_edge.runtime.formats.onnx_dir import GRAPHS, OnnxDirectory, as_ours
from gemma_edge.runtime.packing.folder import CacheFolder


def data_sha256(directory: OnnxDirectory, path: Path, notes: CacheFolder | Path | None) -> str:
    """The hex SHA-256 of a weight file; `notes` as `section_sha256` takes it.

    Raises OnnxDirectoryError where the directory records another one, or the file cannot be read.
    """
    try:
        digest = section_sha256(FileRange(path, 0, path.stat().st_size), notes)
    except OSError as error:
        raise OnnxDirectoryError(f"{path}: cannot be read ({error.strerror}); copy the file again") from error
    directory.digests.check(f"{GRAPHS}/{path.name}", digest)
    return digest


def check_data(directory: OnnxDirectory, graph: onnx_ir.Model, notes: Path | None) -> None:
    """Reads a graph's weights through, unless that was done before or nothing is recorded; raises as data_sha256."""
    if directory.digests.recorded is not None:
        for path in directory.data_of(graph):
            data_sha256(directory, path, notes)


def with_real_files(graph: onnx_ir.Model, folder: Path) -> tuple[bytes, str]:
    """A graph for ONNX Runtime, and the folder its weights lie in. folder: where they are listed.

    There they may be links, as in the hub's cache, whose targets lie elsewhere; ONNX Runtime refuses those.
    Raises OnnxDirectoryError for a graph that cannot be written.
    """
    with as_ours(folder / f"{graph.graph.name}.onnx"):
        model = onnx_ir.to_proto(graph)
    locations = [item for tensor in model.graph.initializer for item in tensor.external_data if item.key == "location"]
    real = {item.value: (folder / item.value).resolve() for item in locations}
    root = os.path.commonpath([path.parent for path in real.values()]) if real else str(folder.resolve())
    for item in locations:
        item.value = real[item.value].relative_to(root).as_posix()
    return model.SerializeToString(), root
