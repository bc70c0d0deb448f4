"""What is in a bundle: sections, signatures, tensors with encodings, metadata, hashes. Reads any .litertlm file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from gemma_edge.converter.printing import as_it_is, printable
from gemma_edge.converter.quality.beside import print_beside, quality_beside
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.digest import sha256_of
from gemma_edge.runtime.formats.encoding import RESTS
from gemma_edge.runtime.formats.flatbuffer import FlatbufferError
from gemma_edge.runtime.formats.litertlm import ENDS_IN, Bundle, BundleError, Section, SectionKind
from gemma_edge.runtime.formats.model import models_of
from gemma_edge.runtime.formats.tflite_model import check_model

_TYPE_NAMES = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
_QUANTIZED = {"INT8", "INT4", "INT2"}


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Everything as JSON values; sizes in bytes. Raises BundleError for what is not a bundle or is damaged."""
    bundle = Bundle.open(path)
    return {
        "file": path.name,
        "bytes": bundle.nbytes,
        "version": ".".join(map(str, bundle.version)),
        "system": dict(bundle.system),
        **_models(bundle),
        "sections": [_section(bundle, section) for section in bundle.sections],
        "metadata": MessageToDict(bundle.metadata(), preserving_proto_field_name=True),
        **quality_beside(path, bundle.nbytes, lambda: _file_sha256(path)),
    }


def _models(bundle: Bundle) -> dict[str, Any]:
    """Where it holds two of the same weights."""
    models = models_of(bundle)
    rows = [{"name": m.name, "layers": list(m.layers), "ffn_widths": list(m.ffn_widths)} for m in models]
    return {"models": rows} if rows else {}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file.fileno(), 0, path.stat().st_size)


def print_inspection(values: dict[str, Any], console: Console) -> None:
    """The same for people."""
    console.print(f"[bold]{as_it_is(values['file'])}[/]  {format_bytes(values['bytes'])}, version {values['version']}")
    for model in values.get("models", ()):
        widths = model["ffn_widths"]
        told = f"model {model['name']}: {len(widths)} layers, feed-forward widths of {min(widths)} to {max(widths)}"
        console.print(as_it_is(told), highlight=False)
    for section in values["sections"]:
        console.print(f"\n[bold]{as_it_is(section['name'])}[/]  {format_bytes(section['bytes'])} at {section['begin']}")
        if ENDS_IN in section:
            console.print(as_it_is(f"its end is the beginning of {section[ENDS_IN]}, too"), highlight=False)
        recorded = section["sha256_recorded"]
        verdict = (
            ""
            if recorded is None
            else ", as recorded"
            if recorded == section["sha256"]
            else f", NOT {printable(recorded)}"
        )
        console.print(f"sha256 {section['sha256']}{verdict}", highlight=False, markup=False)
        for signature in section.get("signatures", ()):
            table = Table(as_it_is(signature["name"]), "tensor", "shape", "type", title_justify="left")
            for direction in ("inputs", "outputs"):
                for tensor in signature[direction]:
                    table.add_row(direction[:-1], as_it_is(tensor["name"]), str(tensor["shape"]), tensor["type"])
            console.print(table)
        if section.get("weights"):
            table = Table("weight", "shape", "encoding")
            table.add_column("bytes", justify="right")
            for weight in section["weights"]:
                table.add_row(
                    as_it_is(weight["name"]), str(weight["shape"]), weight["encoding"], f"{weight['bytes']:,}"
                )
            console.print(table)
    metadata = {key: value for key, value in values["metadata"].items() if key != "jinja_prompt_template"}
    console.print("\n[bold]metadata[/]", metadata)
    print_beside(values, console)


def _section(bundle: Bundle, section: Section) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": section.name,
        "begin": section.begin,
        "bytes": section.nbytes,
        "sha256": bundle.sha256(section),
        "sha256_recorded": section.sha256,
        **({ENDS_IN: section.items[ENDS_IN]} if ENDS_IN in section.items else {}),
    }
    if section.kind is SectionKind.TFLITE_MODEL:
        view = bundle.view(section)
        try:
            check_model(view)
        except FlatbufferError as error:
            raise BundleError(
                f"{bundle.path}: its {section.name} section is corrupt ({error}); copy the file again"
            ) from error
        model = schema.Model.GetRootAs(view, 0)
        values["signatures"] = list(_signatures(model))
        values["weights"] = list(_weights(model))
    return values


def _signatures(model: Any) -> Iterator[dict[str, Any]]:
    for i in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(i)
        subgraph = model.Subgraphs(signature.SubgraphIndex())

        def tensors(count: int, get: Any, subgraph: Any = subgraph) -> list[dict[str, Any]]:
            maps = [get(k) for k in range(count)]
            return [
                {
                    "name": entry.Name().decode(),
                    "shape": _shape(subgraph.Tensors(entry.TensorIndex())),
                    "type": _TYPE_NAMES[subgraph.Tensors(entry.TensorIndex()).Type()].lower(),
                }
                for entry in maps
            ]

        yield {
            "name": signature.SignatureKey().decode(),
            "inputs": tensors(signature.InputsLength(), signature.Inputs),
            "outputs": tensors(signature.OutputsLength(), signature.Outputs),
        }


def _weights(model: Any) -> Iterator[dict[str, Any]]:
    """Tensors whose bytes lie behind the flatbuffer, each once; row slices of one table separately."""
    seen = set()
    for i in range(model.SubgraphsLength()):
        subgraph = model.Subgraphs(i)
        tensors = [subgraph.Tensors(k) for k in range(subgraph.TensorsLength())]
        blocks = {tensor.Name().removesuffix(b".scale"): tensor.Shape(1) for tensor in tensors if _is_scale(tensor)}
        for tensor in tensors:
            buffer = model.Buffers(tensor.Buffer())
            if not buffer.Size() or tensor.Buffer() in seen:
                continue
            seen.add(tensor.Buffer())
            yield {
                "name": tensor.Name().decode().removesuffix(hadamard.SUFFIX),
                "shape": _shape(tensor),
                "encoding": _encoding(tensor, blocks.get(tensor.Name(), 0)),
                "offset": buffer.Offset(),
                "bytes": buffer.Size(),
            }


def _shape(tensor: Any) -> list[int]:
    """Of a scalar, other writers leave it out."""
    return [] if tensor.ShapeIsNone() else [int(size) for size in tensor.ShapeAsNumpy()]


def _is_scale(tensor: Any) -> bool:
    return (tensor.Name() or b"").endswith(b".scale") and tensor.ShapeLength() == 2


def _encoding(tensor: Any, blocks: int) -> str:
    """blocks: of a row of a table, if their scales are a tensor beside it."""
    if (tensor.Name() or b"").endswith(RESTS.encode()):
        return "head+3"
    kind: str = _TYPE_NAMES[tensor.Type()]
    if kind not in _QUANTIZED:
        return {"FLOAT32": "fp32", "FLOAT16": "fp16"}.get(kind, kind.lower())
    quantization = tensor.Quantization()
    if quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
        details = schema.BlockwiseQuantization()
        details.Init(quantization.Details().Bytes, quantization.Details().Pos)
        return f"{kind.lower()}-b{details.BlockSize()}"
    return kind.lower() + (f"-b{tensor.Shape(1) // blocks}" if blocks else "")
