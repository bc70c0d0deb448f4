"""A plan as a directory for onnxruntime, transformers.js and our runtime: its files, each size, and writing them."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.gguf.tokenizer import derived_tokenizer, tokenizer_json
from gemma_edge.converter.checkpoint.scratch import Scratch
from gemma_edge.converter.graph import ops as ir
from gemma_edge.converter.litert.metadata import llm_metadata
from gemma_edge.converter.onnx import processor
from gemma_edge.converter.onnx.config import genai_config, model_config, tokenizer_config
from gemma_edge.converter.onnx.file import BOOL, F32, I64, OnnxFile
from gemma_edge.converter.onnx.lower import lowered
from gemma_edge.converter.onnx.lowering import BATCH, TOKENS
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Look, Quantizer, Stream
from gemma_edge.converter.tokenizer.chat_template import BundleTemplate, bundle_template, programs_unlike
from gemma_edge.converter.tokenizer.tokenizer import SAMPLES, prove_equal, sentencepiece_model
from gemma_edge.runtime.formats import onnx_dir
from gemma_edge.runtime.formats.digest import sha256_of
from gemma_edge.runtime.formats.encoding import Encoding
from gemma_edge.runtime.formats.onnx_digests import DIGESTS, Digests

TOKENIZER_JSON = "tokenizer.json"
COPIED = (TOKENIZER_JSON, "special_tokens_map.json", "added_tokens.json", "generation_config.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json")  # how images and audio are prepared
_NAMES = {"embedder": "inputs_embeds", "per_layer_embedder": "per_layer_inputs"}  # transformers.js' by lookup
_TYPES = {"float32": F32, "bool": BOOL, "int32": I64}
FRAMES, ROWS = "num_frames", "num_tokens"
ROWS_PRESENT = "mask"  # of an encoder that makes as many rows as its input is long
_INPUTS = {"embeddings": "inputs_embeds", "per_layer_embeddings": "per_layer_inputs"}  # and by decoder input


@dataclass(frozen=True)
class PlannedFile:
    """A file whose size is known. content: bytes, a file of the checkpoint, or None for what is still to come."""

    name: str  # "onnx/model_q4.onnx"
    nbytes: int
    content: bytes | Path | None


@dataclass(frozen=True)
class OnnxBundle:
    """Everything about the directory but its weights; used as LitertBundle is."""

    plan: Plan
    graphs: tuple[OnnxFile, ...]
    sections: tuple[PlannedFile, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def lay_out(cls, plan: Plan, checkpoint: Path) -> "OnnxBundle":
        """Emit the graphs and collect configuration and tokenizer; reads no weight.

        Raises TokenizerError or MetadataError where the checkpoint's side files cannot be used.
        """
        dtype = onnx_dir.DTYPES[plan.target.precision]
        graphs = _graphs(plan, dtype)
        files: list[PlannedFile] = []
        for graph in graphs:
            files.append(_bytes(f"{onnx_dir.GRAPHS}/{graph.file_name}", graph.content))
            files += [
                PlannedFile(f"{onnx_dir.GRAPHS}/{name}", nbytes, None) for name, nbytes in graph.data.sizes.items()
            ]
        data_files = {graph.file_name: len(graph.data.sizes) for graph in graphs}
        config = model_config(checkpoint, plan.model.names, dtype, data_files)
        files.append(_json(onnx_dir.CONFIG, config))
        template = bundle_template(checkpoint, plan.model.media, plan.model.names.template)
        tokenizer = sentencepiece_model(checkpoint, plan.model.config.vocab_size, template.written)
        if plan.model.names.genai is not None:
            genai = genai_config(plan, checkpoint, graphs[0].file_name, tokenizer, template)
            files.append(_json(onnx_dir.GENAI_CONFIG, genai))
        files += _tokenizer_files(plan, checkpoint, tokenizer, template)
        digests = Digests.written(dict.fromkeys(_run(files), "0" * 64))
        unlike = programs_unlike(checkpoint, plan.model.names.template)
        if plan.model.names.genai is None:
            unlike.pop("onnxruntime-genai", None)
        notes = tuple(map(_note, unlike.items()))
        return cls(plan, graphs, (*files, PlannedFile(DIGESTS, len(digests), None)), notes)

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(file.nbytes for file in self.sections)

    @property
    def tokenizer(self) -> bytes:
        """A serialised SentencePiece model."""
        [content] = (file.content for file in self.sections if file.name == onnx_dir.TOKENIZER)
        assert isinstance(content, bytes)
        return content

    def beside(self, out: Path) -> Mapping[Path, bytes]:  # noqa: ARG002  as other formats have it
        """Nothing."""
        return {}

    def write(
        self,
        directory: Path,
        checkpoint: Checkpoint,
        identity: Callable[[], str],  # noqa: ARG002  the directory carries no identifier
        on_bytes: Callable[[int], None],
        quantizers: Mapping[str, Quantizer] = NO_QUANTIZERS,
        look: Look | None = None,
    ) -> dict[str, QuantError]:
        """Stream the weights, then everything else and its digests; returns the errors by tensor name."""
        (directory / onnx_dir.GRAPHS).mkdir()
        errors: dict[str, QuantError] = {}
        for graph in self.graphs:
            for name, nbytes in graph.data.sizes.items():
                with (directory / onnx_dir.GRAPHS / name).open("wb") as file:
                    file.truncate(nbytes)
                    stream = Stream(checkpoint, self.plan.specs, self.plan.storages, file, 0, quantizers, look)
                    errors |= stream.write([w for w in graph.weights.values() if w.file == name], on_bytes)
                    os.fsync(file.fileno())
        for planned in self.sections:
            if isinstance(planned.content, Path):
                shutil.copyfile(planned.content, directory / planned.name)
            elif planned.content is not None:
                (directory / planned.name).write_bytes(planned.content)
        digests = {name: _sha256(directory / name) for name in _run(self.sections)}
        (directory / DIGESTS).write_bytes(Digests.written(digests))
        return errors


def _note(unlike: tuple[str, Sequence[str]]) -> str:
    program, found = unlike
    return (
        f"{program} does not write this chat template's prompts as transformers does ({'; '.join(found)}); "
        "render them elsewhere and give it tokens"
    )


def _graphs(plan: Plan, dtype: str) -> tuple[OnnxFile, ...]:
    """A text model as one graph from ids to logits; others with their tables apart, which our runtime reads itself."""
    encodings = {name: storage.encoding for name, storage in plan.storages.items()}
    places = [place for encoder in plan.model.encoders for place in encoder.places]
    lookups = {name: plan.graphs[name][0] for name in _NAMES if name in plan.graphs}
    decoder = plan.graphs[DECODER][0]

    def look_up(file: OnnxFile) -> dict[str, Any]:
        ids = file.input("input_ids", I64, (BATCH, TOKENS))
        rows = {}
        for name, graph in lookups.items():
            read = ids if name == "embedder" else _with_padding(file, ids, places)
            rows[_NAMES[name]] = lowered(file, graph, encodings, {"token_ids": read})["embeddings"]
        return rows

    def decode(file: OnnxFile, inputs: Mapping[str, Any]) -> None:
        outputs = lowered(file, decoder, encodings, inputs)
        file.output("logits", outputs["logits"], (BATCH, 1, plan.model.config.vocab_size))

    if plan.model.names.onnx_text_type is None:
        model = OnnxFile(onnx_dir.graph_file(onnx_dir.MODEL, dtype))
        rows = look_up(model)
        decode(model, {name: rows[_INPUTS[name]] for name in decoder.inputs})
        return (model,)
    embedder = OnnxFile(onnx_dir.graph_file(onnx_dir.EMBEDDER, dtype))
    for name, value in look_up(embedder).items():
        [shape] = [value.shape for key, value in decoder.inputs.items() if _INPUTS[key] == name]
        embedder.output(name, value, _dims(shape))
    merged = OnnxFile(onnx_dir.graph_file(onnx_dir.DECODER, dtype))
    decode(merged, {key: merged.input(_INPUTS[key], F32, _dims(v.shape)) for key, v in decoder.inputs.items()})
    encoders = [graphs[0] for name, graphs in plan.graphs.items() if name not in (DECODER, *lookups)]
    return embedder, merged, *(_encoder(graph, encodings, dtype) for graph in encoders)


def _with_padding(file: OnnxFile, ids: Any, places: Sequence[int]) -> Any:
    """Token ids with padding where media go: transformers (Gemma4Model.forward) tells layers so."""
    for place in places:
        is_place = file.op("Equal", ids, file.constant(place, np.int64))
        ids = file.op("Where", is_place, file.constant(0, np.int64), ids)
    return ids


def _encoder(graph: ir.Graph, encodings: Mapping[str, Encoding], dtype: str) -> OnnxFile:
    """An encoder with its adapter as a file of its own; inputs and outputs are called as transformers.js does."""
    file = OnnxFile(onnx_dir.graph_file(graph.name, dtype), many_rows=True)
    inputs = {
        name: file.input(name, _TYPES[value.dtype], _encoder_dims(value.shape)) for name, value in graph.inputs.items()
    }
    outputs = lowered(file, graph, encodings, inputs)
    present = outputs.pop(ROWS_PRESENT, None)
    for name, value in outputs.items():
        if present is None:
            file.output(name, value, _encoder_dims(graph.outputs[name].shape))
        else:
            width = graph.outputs[name].shape[-1]
            file.output(name, _present(file, value, width, present), (ROWS, width))
    return file


def _present(file: OnnxFile, rows: Any, width: int, present: Any) -> Any:
    """[B, N, D], bool [B, N] -> [n, D], those rows of all inputs that are there, as transformers.js wants them."""
    flat = file.op("Reshape", rows, file.constant([-1, width], np.int64))
    return file.op("Compress", flat, file.op("Reshape", present, file.constant([-1], np.int64)), axis=0)


def _encoder_dims(shape: ir.Shape) -> tuple[int | str, ...]:
    """[1, ANY, ...] -> [batch_size, num_frames, ...]."""
    return (BATCH, *(FRAMES if size == ir.ANY else size for size in shape[1:]))


def _dims(shape: ir.Shape) -> tuple[int | str, ...]:
    """[1, ANY, ...] -> [batch_size, sequence_length, ...]."""
    return (BATCH, TOKENS, *shape[2:])


def _tokenizer_files(plan: Plan, checkpoint: Path, tokenizer: bytes, template: BundleTemplate) -> list[PlannedFile]:
    model = plan.model
    metadata = llm_metadata(
        checkpoint, model.names.litert, plan.context_tokens, tokenizer, model.image_pixels, model.takes_audio, template,
        model.patches,
    )  # fmt: skip
    config = tokenizer_config(checkpoint, model.names)
    names, made = list(COPIED), {}
    if model.encoders:
        config = {**processor.tokens(model), **config}
        names += processor.FILES
        made = processor.made(checkpoint, model, config["chat_template"])
    copied = [checkpoint / name for name in names if (checkpoint / name).exists()]
    has_json = checkpoint / TOKENIZER_JSON in copied
    return [
        _bytes(onnx_dir.TOKENIZER, tokenizer),
        _bytes(onnx_dir.METADATA, metadata),
        _json("tokenizer_config.json", config),
        *(PlannedFile(path.name, path.stat().st_size, path) for path in copied),
        *([] if has_json else [_bytes(TOKENIZER_JSON, _tokenizer_json(checkpoint, tokenizer))]),
        *(_bytes(name, c.encode()) if isinstance(c, str) else _json(name, c) for name, c in made.items()),
    ]


def _tokenizer_json(checkpoint: Path, tokenizer: bytes) -> bytes:
    """For transformers.js and onnxruntime-genai, which read no SentencePiece model; proved to make the same tokens.

    Raises CheckpointError, TokenizerError where there is none.
    """
    pieces = sentencepiece_model_pb2.ModelProto.FromString(tokenizer).pieces
    lists = {
        "tokens": [piece.piece for piece in pieces],
        "scores": [float(piece.score) for piece in pieces],
        "token_type": [int(piece.type) for piece in pieces],
    }
    metadata = {f"tokenizer.ggml.{name}": values for name, values in lists.items()}
    content = derived_tokenizer(checkpoint / onnx_dir.TOKENIZER, {"tokenizer.ggml.model": "llama", **metadata})
    scratch = Scratch()
    path = scratch.path / TOKENIZER_JSON
    path.write_bytes(tokenizer_json(content))
    prove_equal(tokenizer, path, SAMPLES)
    return path.read_bytes()


def _run(files: Iterable[PlannedFile]) -> list[str]:
    """The names of those that are run, or tell how: see onnx_digests.py."""
    others = (onnx_dir.TOKENIZER, onnx_dir.METADATA)
    return [file.name for file in files if file.name.startswith(f"{onnx_dir.GRAPHS}/") or file.name in others]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file.fileno(), 0, path.stat().st_size)


def _bytes(name: str, content: bytes) -> PlannedFile:
    return PlannedFile(name, len(content), content)


def _json(name: str, values: Mapping[str, Any]) -> PlannedFile:
    return _bytes(name, f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode())
