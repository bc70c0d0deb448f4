"""What is in a GGUF file: metadata, tensors with their types, hashes. Reads any that is not split."""

from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from gemma_edge.converter.checkpoint.gguf.file import GgufFile, read_gguf
from gemma_edge.converter.gguf.blocks import TYPE_OF
from gemma_edge.converter.printing import as_it_is
from gemma_edge.converter.quality.beside import print_beside, quality_beside
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.formats.digest import sha256_of

_LONGEST_LIST: Final = 64
_TEMPLATE: Final = "tokenizer.chat_template"
_ENCODINGS: Final = {kind: name for name, kind in TYPE_OF.items()}


def inspect_gguf(path: Path) -> dict[str, Any]:
    """Everything as JSON values; sizes in bytes; of long lists, how long they are. Raises CheckpointError."""
    file = read_gguf(path)
    with path.open("rb") as opened:
        nbytes = path.stat().st_size
        digest = sha256_of(opened.fileno(), 0, nbytes)
    return {
        "file": path.name,
        "bytes": nbytes,
        "sha256": digest,
        "metadata": {key: _shown(value) for key, value in file.metadata.items()},
        "weights": _weights(file),
        **quality_beside(path, nbytes, lambda: digest),
    }


def _shown(value: Any) -> Any:
    if isinstance(value, list) and len(value) > _LONGEST_LIST:
        return f"{len(value)} values"
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return str(value) if value in (float("inf"), float("-inf")) else value  # JSON has no word for it


def _weights(file: GgufFile) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "type": tensor.type,
            "encoding": _ENCODINGS.get(tensor.type, tensor.type),
            "offset": tensor.offset,
            "bytes": tensor.nbytes,
        }
        for tensor in file.tensors.values()
    ]


def print_gguf(values: dict[str, Any], console: Console) -> None:
    """The same for people."""
    console.print(f"[bold]{as_it_is(values['file'])}[/]  {format_bytes(values['bytes'])}")
    console.print(f"sha256 {values['sha256']}", highlight=False)
    table = Table("weight", "shape", "type", "encoding")
    table.add_column("bytes", justify="right")
    for weight in values["weights"]:
        name, shape = as_it_is(weight["name"]), str(weight["shape"])
        table.add_row(name, shape, weight["type"], weight["encoding"], f"{weight['bytes']:,}")
    console.print(table)
    metadata = {key: value for key, value in values["metadata"].items() if not key.startswith(_TEMPLATE)}
    console.print("\n[bold]metadata[/]", metadata)
    print_beside(values, console)
