"""A plan as a GGUF file: its metadata, where each tensor lies, and writing them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.gguf.families import FAMILIES, fixed_elsewhere, query_scale
from gemma_edge.converter.checkpoint.gguf.names import gguf_name
from gemma_edge.converter.checkpoint.gguf.writer import Layout, Value
from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.gguf.blocks import PlacedTensor, type_of
from gemma_edge.converter.gguf.metadata import metadata
from gemma_edge.converter.gguf.modelfile import modelfile
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.stored import StoredWeight
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Look, Quantizer, Stream, write_at
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.converter.tokenizer.chat_template import BundleTemplate, bundle_template
from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model

IDENTITY: Final = "gemma_edge.identity"
"""A key of the metadata: what the file follows from."""


@dataclass(frozen=True)
class Part:
    """What `plan` lists as a section."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class GgufBundle:
    """Everything about the file but its weights."""

    plan: Plan
    tokenizer: bytes
    notes: tuple[str, ...]
    _metadata: Mapping[str, Value] = field(repr=False)
    _shapes: tuple[tuple[str, str, tuple[int, ...]], ...]
    _template: BundleTemplate
    _side_path: Path

    @classmethod
    def lay_out(cls, plan: Plan, checkpoint: Path) -> "GgufBundle":
        """Collect metadata and tokenizer, and place every tensor; reads no weight.

        Raises TokenizerError, MetadataError or ChatTemplateError where the checkpoint's side files cannot be used.
        """
        template = bundle_template(checkpoint)
        tokenizer = sentencepiece_model(checkpoint, plan.model.config.vocab_size, template.written)
        values = metadata(plan, checkpoint, tokenizer, template)
        return cls(plan, tokenizer, _notes(plan), values, tuple(_shapes(plan)), template, checkpoint)

    @property
    def sections(self) -> Sequence[Part]:
        """The header, then the tensors by their type in the file."""
        layout = self._layout()
        sizes: dict[str, int] = {}
        for tensor in layout.tensors.values():
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
        parts = (Part(f"tensors of type {kind}", nbytes) for kind, nbytes in sorted(sizes.items()))
        return Part("metadata", len(layout.header)), *parts

    @property
    def nbytes(self) -> int:
        """Size of the finished file."""
        return self._layout().nbytes

    def beside(self, out: Path) -> Mapping[Path, bytes]:
        """What lies beside the file `out`: a Modelfile, by which Ollama takes it."""
        content = modelfile(out.name, self._template.turns, self._side_path, self.plan.context_tokens)
        return {out.with_name(f"{out.name}.Modelfile"): content.encode()}

    def write(
        self,
        file: BinaryIO,
        checkpoint: Checkpoint,
        identity: Callable[[], str],
        on_bytes: Callable[[int], None],
        quantizers: Mapping[str, Quantizer] = NO_QUANTIZERS,
        look: Look | None = None,
    ) -> dict[str, QuantError]:
        """Stream the weights, then the header; returns the errors by tensor name.

        identity is asked last: a digest of all inputs. Sizes do not depend on it.
        """
        layout = self._layout()
        file.truncate(layout.nbytes)
        specs = stored_specs(self.plan)
        stream = Stream(checkpoint, specs, self.plan.storages, file, 0, quantizers, look)
        errors = stream.write(list(self._placed(layout, specs)), on_bytes)
        header = self._layout(identity()).header
        assert len(header) == len(layout.header)
        write_at(file, header, 0)
        return errors

    def _layout(self, identity: str = "0" * 64) -> Layout:
        return Layout.of({**self._metadata, IDENTITY: Value("string", identity)}, self._shapes)

    def _placed(self, layout: Layout, specs: Mapping[str, TensorSpec]) -> Iterator[PlacedTensor]:
        """In the order in which a run of the model reads them, so that a measurement keeps up: the head last."""
        for spec in specs.values():
            name, index = gguf_name(spec.source)
            tensor, encoding = layout.tensors[name], self.plan.storages[spec.name].encoding
            rows = tensor.shape[-2] if len(spec.shape) == 2 else 1
            offset = tensor.offset if index is None else tensor.offset + index * (tensor.nbytes // tensor.shape[0])
            yield PlacedTensor(StoredWeight(spec.name, spec.shape, encoding), offset, rows)


def stored_specs(plan: Plan) -> dict[str, TensorSpec]:
    """The plan's tensors as llama.cpp wants them, by our names, in the order of use; a tied head stands for both.

    What our graphs fold into a weight, llama.cpp multiplies by itself: the embeddings' sqrt(width), and so on.
    """
    decoder = plan.graphs[DECODER][0].used
    tables = [spec for spec in plan.specs.values() if spec.role in (Role.EMBEDDING, Role.PLE)]
    if plan.model.config.tied_head:
        tables = [spec for spec in tables if spec.source != EMBEDDING]
    used = (*tables, *(plan.specs[name] for name in decoder))
    return {spec.name: replace(spec, fold=replace(spec.fold, mul=_factor(spec, plan.model))) for spec in used}


def _factor(spec: TensorSpec, model: Model) -> float:
    """What is left of a fold's factor: where it scales queries, whatever llama.cpp does not."""
    if not spec.name.endswith("self_attn.q_norm.weight"):
        return 1.0
    factor = spec.fold.mul / query_scale(model.config)
    return 1.0 if abs(factor - 1) < 1e-6 else factor


def _shapes(plan: Plan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(llama.cpp's name, GGUF's type, shape) of every tensor of the file, in the order of the file."""
    vocabulary = plan.model.config.vocab_size
    stacks: dict[str, list[TensorSpec]] = {}
    for spec in stored_specs(plan).values():
        name, _ = gguf_name(spec.source)
        stacks.setdefault(name, []).append(spec)
    for name, specs in stacks.items():
        spec, kind = specs[0], type_of(plan.storages[specs[0].name].encoding)
        shape = spec.shape
        if spec.role in (Role.EMBEDDING, Role.PLE, Role.HEAD):
            shape = (vocabulary, shape[1])
        is_stack = gguf_name(spec.source)[1] is not None
        yield name, kind, (len(specs), *shape) if is_stack else shape
    yield from _unused(plan)


def _unused(plan: Plan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Keys and values of layers that read another one's: llama.cpp asks for them (src/models/gemma3n.cpp) and never
    looks. They stay zeros, in the type of the layer's queries.
    """
    for index, layer in enumerate(plan.model.config.attention):
        attention = f"layers.{index}.self_attn."
        if attention + "k_proj.weight" in plan.specs:
            continue
        queries = plan.specs[attention + "q_proj.weight"]
        kind, shape = (
            type_of(plan.storages[queries.name].encoding),
            (layer.heads.kv * layer.heads.size, *queries.shape[1:]),
        )
        for name in ("attn_k", "attn_v"):
            yield f"blk.{index}.{name}.weight", kind, shape
        yield f"blk.{index}.attn_k_norm.weight", "F32", (layer.heads.size,)


def _notes(plan: Plan) -> tuple[str, ...]:
    """What llama.cpp would compute otherwise."""
    fixed = fixed_elsewhere(plan.model.config)
    if not fixed:
        return ()
    told = "; ".join(f"{name} {_short(here)}, there {_short(there)}" for name, (here, there) in fixed.items())
    name = FAMILIES[plan.model.family].architecture
    return (f"llama.cpp has the numbers of E2B and E4B fixed in its code of {name} and cannot run this model: {told}",)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
