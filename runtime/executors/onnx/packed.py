"""Weights packed for the kernels of this machine: once, into files that are mapped ever after.

ONNX Runtime packs the weights of MatMulNBits at every start, into anonymous memory: 1.2 times the weights, 1.9 GB for
E2B. It can save what it packed beside the graph (`session.save_external_prepacked_constant_initializers`) and map that
at the next start. The result holds for one version of ONNX Runtime and one kind of CPU, so a folder is named by both
and by the content it was made from; packing runs in a subprocess, whose memory goes with it, into a partial folder.
"""

import json
import os
import shutil
import signal
import sys
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import InferenceSession as _Session

from gemma_edge.runtime.executors.litert.weight_cache import WeightCacheError, cache_opened, cpu_key
from gemma_edge.runtime.executors.onnx.data import data_sha256, with_real_files
from gemma_edge.runtime.executors.onnx.graph import Cache, caches, in_place, in_whole_lines
from gemma_edge.runtime.executors.onnx.origin import ORIGIN, file_stamps
from gemma_edge.runtime.formats.onnx_dir import GRAPHS, OnnxDirectory
from gemma_edge.runtime.packing.child import refuse_to_pack_again, run_child
from gemma_edge.runtime.packing.folder import CacheFolder

GRAPH = "decoder.onnx"
_SIZES = "sizes.json"
_SMALLEST_WEIGHT_BYTES = 33
"""What stays inside the graph: numbers that ONNX Runtime's shape inference wants there, up to 4 int64. A weight there
would silently lose its packed form, so the builder compares logits."""
_GROWTH = 2.3  # bytes written for each byte of weights: what was packed lies beside what it was packed from


def packed_graph(directory: OnnxDirectory, cache_dir: Path, threads: int) -> Path:
    """The graph with packed weights, made now if this content was not packed before on this machine.

    A folder that is not as it was left is made again. Raises WeightCacheError, and OnnxDirectoryError as content_key.
    """
    with cache_opened(cache_dir) as folder:
        packed = packed_in(folder, directory, threads)
        return folder.path / packed.parent.name / packed.name


def packed_in(folder: CacheFolder, directory: OnnxDirectory, threads: int) -> Path:
    """Where the packed graph can be read while the folder is open. Raises as packed_graph does."""
    name = f"{content_key(directory, folder)}.{version('onnxruntime')}.{cpu_key()}.onnx"
    locking = f"{name.removesuffix('.onnx')}.lock"
    if _is_whole(folder, name):
        folder.tidy(locking)
        return folder.anchor / name / GRAPH
    refuse_to_pack_again()
    with folder.locked(locking) as lock:
        if not _is_whole(folder, name):
            _build(directory, folder, name, threads, lock)
    return folder.anchor / name / GRAPH


def content_key(directory: OnnxDirectory, notes: CacheFolder | Path | None) -> str:
    """The hex SHA-256 of the decoder, graph and weights; `notes` as `section_sha256` takes it.

    Raises OnnxDirectoryError where weights are not those that the directory records.
    """
    digest = sha256(directory.graph_path(directory.decoder).read_bytes())
    for path in directory.decoder_data:
        digest.update(data_sha256(directory, path, notes).encode())
    return digest.hexdigest()


def _is_whole(folder: CacheFolder, name: str) -> bool:
    """Whether every file has the size that it was left with."""
    if (place := folder.own(name)) is None:
        return False
    try:
        sizes = json.loads((place / _SIZES).read_text())
        return all((place / name).stat().st_size == nbytes for name, nbytes in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _build(directory: OnnxDirectory, folder: CacheFolder, name: str, threads: int, lock: int) -> None:
    needed = round(_GROWTH * sum(path.stat().st_size for path in directory.decoder_data))
    free = shutil.disk_usage(folder.anchor).free
    if free < needed:
        raise WeightCacheError(
            f"the weight cache needs about {needed >> 20} MiB in {folder.path}, {free >> 20} MiB are free; "
            "free some space or choose another cache_dir"
        )
    partial = folder.anchor / f"{name.removesuffix('.onnx')}.partial"
    for old in (name, partial.name):  # under the lock: what is left belongs to a builder that died
        folder.remove(old)
    partial.mkdir()
    source = str(directory.path.absolute())
    status, errors = run_child(
        __name__,
        [source, f"{partial.name}/{GRAPH}", str(threads)],
        lambda: _pack(source, str(partial / GRAPH), str(threads)),
        folder=folder.anchor,
        lock=lock,
    )
    if status:
        folder.remove(partial.name)
        lines = errors.strip().splitlines() or ["no message"]
        raise WeightCacheError(
            f"packing the weights of {directory.path} failed with status {status} ({lines[-1]}); {_remedy(status)}"
        )
    graph = directory.graph_path(directory.decoder)
    names = [path.relative_to(directory.path).as_posix() for path in (graph, *directory.decoder_data)]
    origin = {"path": str(directory.path.resolve()), "files": file_stamps(directory.path, names)}
    (partial / ORIGIN).write_text(json.dumps(origin))
    sizes = {}
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    (partial / _SIZES).write_text(json.dumps(sizes))
    folder.put(partial.name, name)


def _remedy(status: int) -> str:
    if status == -signal.SIGKILL:
        return "close other programs, it was killed"
    crashed = "ONNX Runtime crashed on it: copy the directory again, or " if status < 0 else ""
    return f"{crashed}convert the checkpoint again"


def _pack(path: str, out: str, threads: str) -> None:
    directory = OnnxDirectory.open(Path(path))
    model = directory.graphs[directory.decoder]
    in_place(model)
    in_whole_lines(model)
    graph, folder = with_real_files(model, directory.path / GRAPHS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 3
    options.optimized_model_filepath = out
    for key, value in (
        ("model_external_initializers_file_folder_path", folder),
        ("optimized_model_external_initializers_file_name", f"{GRAPH}_data"),
        ("optimized_model_external_initializers_min_size_in_bytes", str(_SMALLEST_WEIGHT_BYTES)),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    packed_now = _Session(
        graph,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["GatherSliceToSplitFusion"],  # makes longer lists of numbers than stay inside
    )
    feeds = _one_token(packed_now, caches(model))
    expected = packed_now.run(["logits"], feeds)[0]
    del packed_now
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    found = _Session(out, options, providers=["CPUExecutionProvider"]).run(["logits"], feeds)[0]
    if not np.allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max()):
        raise WeightCacheError("the packed weights give other logits")


def _one_token(session: onnxruntime.InferenceSession, kept: list[Cache]) -> dict[str, NDArray[Any]]:
    """A first token, with random embeddings where those are given."""
    shapes = {cache.name: cache.shape(1) for cache in kept}
    feeds: dict[str, NDArray[Any]] = {}
    for node in session.get_inputs():
        shape = shapes.get(node.name) or [size if isinstance(size, int) else 1 for size in node.shape]
        is_row = node.name not in shapes and node.type == "tensor(float)"
        values = np.random.default_rng(0).standard_normal(shape, np.float32) if is_row else np.zeros(shape)
        feeds[node.name] = values.astype(np.float32 if node.type == "tensor(float)" else np.int64)
    feeds["attention_mask"] += 1
    return feeds


if __name__ == "__main__":
    _pack(*sys.argv[1:])
