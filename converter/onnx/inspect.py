"""What is in an ONNX directory: graphs, their inputs and outputs, weights with encodings, metadata, hashes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from gemma_edge.converter.plan.output import digest_of_files
from gemma_edge.converter.printing import as_it_is
from gemma_edge.converter.quality.beside import print_beside, quality_beside
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.digest import sha256_of
from gemma_edge.runtime.formats.onnx_digests import Digests
from gemma_edge.runtime.formats.onnx_dir import GRAPHS, SUFFIXES, OnnxDirectory, as_ours, read_graph
from gemma_edge.runtime.formats.onnx_tables import scales_of, table_bits


def inspect_directory(path: Path) -> dict[str, Any]:
    """Everything as JSON values; sizes in bytes. Raises OnnxDirectoryError for what is no ONNX model or is damaged."""
    directory = OnnxDirectory.open(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    nbytes = sum(file.stat().st_size for file in files)
    listed = [_file(path, file) for file in files]
    return {
        "directory": path.name,
        "bytes": nbytes,
        "dtype": directory.dtype,
        "files": listed,
        "graphs": [_graph(graph, directory.digests) for graph in _graphs(directory)],
        "metadata": MessageToDict(directory.metadata(), preserving_proto_field_name=True),
        **quality_beside(path, nbytes, lambda: digest_of_files({file["name"]: file["sha256"] for file in listed})),
    }


def print_directory(values: dict[str, Any], console: Console) -> None:
    """The same for people."""
    console.print(f"[bold]{as_it_is(values['directory'])}[/]  {format_bytes(values['bytes'])}, {values['dtype']}")
    files = Table("file", "bytes", "sha256")
    for file in values["files"]:
        files.add_row(as_it_is(file["name"]), f"{file['bytes']:,}", file["sha256"])
    console.print(files)
    for graph in values["graphs"]:
        table = Table(as_it_is(graph["file"]), "tensor", "shape", "type", title_justify="left")
        for direction in ("inputs", "outputs"):
            for tensor in graph[direction]:
                table.add_row(direction[:-1], as_it_is(tensor["name"]), as_it_is(str(tensor["shape"])), tensor["type"])
        console.print(table)
        table = Table("weight", "shape", "encoding", "data file")
        table.add_column("bytes", justify="right")
        for weight in graph["weights"]:
            name, file = as_it_is(weight["name"]), as_it_is(weight["file"])
            table.add_row(name, str(weight["shape"]), weight["encoding"], file, f"{weight['bytes']:,}")
        console.print(table)
    metadata = {key: value for key, value in values["metadata"].items() if key != "jinja_prompt_template"}
    console.print("\n[bold]metadata[/]", metadata)
    print_beside(values, console)


def _graphs(directory: OnnxDirectory) -> list[Path]:
    """Encoders of images and audio included."""
    suffix = SUFFIXES[directory.dtype]
    return sorted((directory.path / GRAPHS).glob(f"*{suffix}.onnx"))


def _file(directory: Path, file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = sha256_of(opened.fileno(), 0, file.stat().st_size)
    return {"name": file.relative_to(directory).as_posix(), "bytes": file.stat().st_size, "sha256": digest}


def _graph(path: Path, digests: Digests) -> dict[str, Any]:
    graph = read_graph(path, digests).graph
    with as_ours(path):
        return {
            "file": path.name,
            "inputs": list(_tensors(graph.inputs)),
            "outputs": list(_tensors(graph.outputs)),
            "weights": list(_weights(graph)),
        }


def _tensors(values: Iterable[onnx_ir.Value]) -> Iterator[dict[str, Any]]:
    for value in values:
        shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
        yield {"name": value.name, "shape": shape, "type": str(value.dtype).lower()}


def _weights(graph: onnx_ir.Graph) -> Iterator[dict[str, Any]]:
    """Tensors in data files; what is stored in the graph itself are constants."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor):
            yield {
                "name": str(value.name).replace(hadamard.SUFFIX, ""),
                "shape": list(tensor.shape.numpy()),
                "encoding": _encoding(value, graph),
                "file": str(tensor.location),
                "offset": tensor.offset or 0,
                "bytes": tensor.length,
            }


def _encoding(value: onnx_ir.Value, graph: onnx_ir.Graph) -> str:
    """ "int4-b128", as the operator that reads the weight says; the stored type for everything else."""
    for node, index in value.uses():
        if node.op_type == "MatMulNBits" and index == 1:
            return f"int{node.attributes['bits'].as_int()}-b{node.attributes['block_size'].as_int()}"
        scales = scales_of(node, graph)
        if index == 0 and (bits := table_bits(node)) and scales is not None:
            stored_bytes, blocks = (_shape(table)[1] for table in (value, scales))
            return f"int{bits}-b{stored_bytes * 8 // bits // blocks}"
    return {"FLOAT": "fp32", "FLOAT16": "fp16"}.get(str(value.dtype), str(value.dtype).lower())


def _shape(value: onnx_ir.Value) -> list[int]:
    return [] if value.const_value is None else [int(size) for size in value.const_value.shape.numpy()]
