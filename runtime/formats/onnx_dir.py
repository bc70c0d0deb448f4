"""The directory of an ONNX model: what its files are called, and reading it with every size checked first.

    config.json                          transformers' configuration, with `transformers.js_config`
    generation_config.json, tokenizer.json, tokenizer_config.json, ...    the checkpoint's
    tokenizer.model, llm_metadata.pb     what a LiteRT-LM bundle holds too: SentencePiece model, LlmMetadata
    genai_config.json                    Gemma 3: for onnxruntime-genai (0.18 knows no Gemma 3n)
    preprocessor_config.json, processor_config.json, chat_template.jinja    with encoders: for AutoProcessor
    onnx/MODEL[_q4].onnx                 graphs; the suffix tells the precision
    onnx/MODEL[_q4].onnx_data[_1, ...]   weights
    digests.json                         of what is run: see onnx_digests.py

Gemma 3 is one MODEL, `model`: input_ids -> logits. Gemma 3n is two, as its table of per-layer embeddings is not part of
what runs: `embed_tokens` (input_ids -> inputs_embeds, per_layer_inputs) and `decoder_model_merged`; there may be a
`vision_encoder` and an `audio_encoder` beside them. The names are those that transformers.js looks for
(src/utils/dtypes.js, src/models/session_config.js).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain, read_plain_text
from gemma_edge.runtime.formats.onnx_digests import Digests, OnnxDirectoryError

if TYPE_CHECKING:
    import onnx_ir

CONFIG, GENAI_CONFIG = "config.json", "genai_config.json"
TOKENIZER, METADATA = "tokenizer.model", "llm_metadata.pb"
GRAPHS = "onnx"
MODEL, EMBEDDER, DECODER = "model", "embed_tokens", "decoder_model_merged"
VISION_ENCODER, AUDIO_ENCODER = "vision_encoder", "audio_encoder"
SUFFIXES: Mapping[str, str] = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q4": "_q4"}
"""File name suffix by transformers.js' dtype."""
DTYPES: Mapping[str, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int4": "q4"}
"""transformers.js' dtype by the precision of a target."""
OPSETS: Mapping[str, int] = {"": 21, "com.microsoft": 1}
"""The newest operator set of each domain that is written, and read."""


def graph_file(model: str, dtype: str) -> str:
    """("model", "q4") -> "model_q4.onnx"."""
    return f"{model}{SUFFIXES[dtype]}.onnx"


@dataclass(frozen=True)
class OnnxDirectory:
    """A directory whose files are all there, as long as its graphs say."""

    path: Path
    dtype: str
    graphs: "Mapping[str, onnx_ir.Model]"  # by MODEL; weights are references
    digests: Digests

    @classmethod
    def open(cls, path: Path) -> "OnnxDirectory":
        """Read the configuration and the graphs, no weight.

        Raises OnnxDirectoryError for a file that is missing, cut off, changed or of another version.
        """
        dtype, digests = _dtype(path), Digests.read(path)
        is_split = (path / GRAPHS / graph_file(DECODER, dtype)).exists()
        names = (EMBEDDER, DECODER) if is_split else (MODEL,)
        graphs = {name: read_graph(path / GRAPHS / graph_file(name, dtype), digests) for name in names}
        return cls(path, dtype, graphs, digests)

    @property
    def is_split(self) -> bool:
        """Whether embeddings are a graph of their own."""
        return EMBEDDER in self.graphs

    @property
    def decoder(self) -> str:
        """The MODEL that gives logits."""
        return DECODER if self.is_split else MODEL

    @property
    def decoder_data(self) -> list[Path]:
        """The data files of the decoder's weights."""
        return self.data_of(self.graphs[self.decoder])

    def data_of(self, graph: "onnx_ir.Model") -> list[Path]:
        """The data files of a graph's weights."""
        return [self.path / GRAPHS / name for name in _data_bytes(graph)]

    def encoder(self, model: str) -> "onnx_ir.Model | None":
        """The graph of an encoder, read as `open` reads the others; None where there is none."""
        path = self.graph_path(model)
        return read_graph(path, self.digests) if path.exists() else None

    @property
    def decoder_bytes(self) -> int:
        """Of the decoder's weights: what one token reads."""
        return sum(path.stat().st_size for path in self.decoder_data)

    def sentencepiece_model(self) -> bytes:
        """The tokenizer. Raises OnnxDirectoryError where the file is missing."""
        return self.read(TOKENIZER)

    def graph_path(self, model: str) -> Path:
        """Where a graph lies."""
        return self.path / GRAPHS / graph_file(model, self.dtype)

    def metadata(self) -> LlmMetadata:
        """Tokens, chat template, sampler defaults. Raises OnnxDirectoryError where the file is missing or damaged."""
        try:
            return LlmMetadata.FromString(self.read(METADATA))
        except DecodeError as error:
            raise OnnxDirectoryError(f"{self.path / METADATA}: damaged; convert the checkpoint again") from error

    def read(self, name: str) -> bytes:
        """A file beside the graphs. Raises OnnxDirectoryError where it is missing, or is not what was converted."""
        try:
            content = read_plain(self.path / name)
        except OSError as error:
            raise OnnxDirectoryError(
                f"{self.path / name}: cannot be read ({error.strerror}); convert the checkpoint again"
            ) from error
        if name != CONFIG:
            self.digests.check_content(name, content)
        return content


def is_onnx_directory(path: Path) -> bool:
    """Whether `path` is meant to be one."""
    return (path / GRAPHS).is_dir()


def _dtype(path: Path) -> str:
    config = path / CONFIG
    try:
        values: Any = json.loads(read_plain_text(config))
    except (OSError, ValueError) as error:
        raise OnnxDirectoryError(
            f"{config}: cannot be read ({error}); give the directory of a converted model"
        ) from error
    settings = values.get("transformers.js_config") if isinstance(values, dict) else None
    dtype = settings.get("dtype") if isinstance(settings, dict) else None
    if dtype not in SUFFIXES:
        raise OnnxDirectoryError(
            f"{config}: transformers.js_config.dtype is {dtype!r}, expected one of {', '.join(SUFFIXES)}; "
            "convert the checkpoint with gemma-edge"
        )
    return str(dtype)


def read_graph(path: Path, digests: Digests) -> "onnx_ir.Model":
    """A graph, its weights as references. Raises OnnxDirectoryError as OnnxDirectory.open does."""
    import onnx_ir

    if not path.exists():
        found = sorted(file.name for file in path.parent.glob("*.onnx")) or "no graph"
        raise OnnxDirectoryError(
            f"{path.parent}: expected {path.name}, found {found}; the suffix must be that of the dtype in {CONFIG}"
        )
    try:
        content = read_plain(path)
    except OSError as error:
        raise OnnxDirectoryError(f"{path}: cannot be read ({error.strerror}); copy the file again") from error
    digests.check_content(f"{GRAPHS}/{path.name}", content)
    try:
        model = onnx_ir.load(path)
    except Exception as error:  # protobuf and onnx-ir raise whatever a damaged file leads them into
        raise OnnxDirectoryError(f"{path}: not an ONNX graph, or damaged; copy the file again") from error
    for domain, version in model.graph.opset_imports.items():
        newest = OPSETS.get(domain)
        if newest is None or version > newest:
            known = ", ".join(f"{name or 'ai.onnx'} {number}" for name, number in OPSETS.items())
            raise OnnxDirectoryError(
                f"{path}: operator set {domain or 'ai.onnx'} {version}, expected up to {known}; update gemma-edge"
            )
    _check_sizes(path, model)
    return model


@contextmanager
def as_ours(path: Path) -> Iterator[None]:
    """What a graph that is not as gemma-edge writes them leads its readers into is an OnnxDirectoryError."""
    try:
        yield
    except GemmaEdgeError:
        raise
    except Exception as error:  # attributes, shapes, inputs that are not there, in code of ours and of onnx-ir
        raise OnnxDirectoryError(
            f"{path}: not as gemma-edge writes a graph ({type(error).__name__}); convert the checkpoint again"
        ) from error


def _check_sizes(path: Path, model: "onnx_ir.Model") -> None:
    """Every byte of every weight is there. ONNX Runtime would map the file and read zeros, or be killed."""
    for name, nbytes in _data_bytes(model).items():
        if Path(name).name != name:
            raise OnnxDirectoryError(
                f"{path}: its weights lie in {name!r}, expected a file name without directories; use another model"
            )
        data = path.parent / name
        found = data.stat().st_size if data.is_file() else 0
        if found < nbytes:
            raise OnnxDirectoryError(f"{data}: {found} bytes, {path.name} needs {nbytes}; copy the file again")


def _data_bytes(model: "onnx_ir.Model") -> dict[str, int]:
    """How long each data file must be."""
    import onnx_ir

    needed: dict[str, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor):
            name = str(tensor.location)
            needed[name] = max(needed.get(name, 0), (tensor.offset or 0) + (tensor.length or 0))
    return needed
