"""What is in a directory of packed safetensors: files with hashes, tensors with encodings, configuration."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.plan.output import digest_of_files
from gemma_edge.converter.printing import as_it_is
from gemma_edge.converter.quality.beside import print_beside, quality_beside
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.formats.digest import sha256_of


def inspect_directory(path: Path) -> dict[str, Any]:
    """Everything as JSON values; sizes in bytes. Raises CheckpointError for what is damaged."""
    checkpoint = Checkpoint.open(path)
    files = [_file(path, file) for file in sorted(path.rglob("*")) if file.is_file()]
    nbytes = sum(file["bytes"] for file in files)
    weights = [
        {"name": name, "shape": list(tensor.shape), "encoding": tensor.dtype, "file": tensor.file.name, "bytes": size}
        for name, tensor in checkpoint.tensors.items()
        for size in [tensor.nbytes + (0 if tensor.scales is None else tensor.scales.nbytes)]
    ]
    return {
        "directory": path.name,
        "bytes": nbytes,
        "files": files,
        "quantization_config": checkpoint.config["quantization_config"],
        "weights": weights,
        **quality_beside(path, nbytes, lambda: digest_of_files({file["name"]: file["sha256"] for file in files})),
    }


def print_directory(values: dict[str, Any], console: Console) -> None:
    """The same for people."""
    console.print(f"[bold]{as_it_is(values['directory'])}[/]  {format_bytes(values['bytes'])}")
    files = Table("file", "bytes", "sha256")
    for file in values["files"]:
        files.add_row(as_it_is(file["name"]), f"{file['bytes']:,}", file["sha256"])
    console.print(files)
    table = Table("weight", "shape", "encoding", "file")
    table.add_column("bytes", justify="right")
    for weight in values["weights"]:
        names = (as_it_is(weight["name"]), str(weight["shape"]), as_it_is(weight["encoding"]), as_it_is(weight["file"]))
        table.add_row(*names, f"{weight['bytes']:,}")
    console.print(table)
    console.print("\n[bold]quantization_config[/]", values["quantization_config"])
    print_beside(values, console)


def _file(directory: Path, file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = sha256_of(opened.fileno(), 0, file.stat().st_size)
    return {"name": file.relative_to(directory).as_posix(), "bytes": file.stat().st_size, "sha256": digest}
