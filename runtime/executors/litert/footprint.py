"""What a bundle will need in memory, computed from its own sections.

The converter plans before it writes; this is the same sum for whoever has only the file. It reads the bundle's header
and the shapes in the decoder's graph, some milliseconds, and no weight.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from gemma_edge.profiles.budget import MemoryBudget
from gemma_edge.profiles.costs import FLOAT_BYTES, ActivationShape, litert_footprint, with_drafter
from gemma_edge.profiles.costs_encoders import EncoderShape, with_encoders
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.profiles.signatures import Call, own_name
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.sections import (
    audio_size,
    has_model,
    model_shapes,
    sane,
    section_range,
    shape_of,
    vision_size,
)
from gemma_edge.runtime.executors.litert.slot import slots_of
from gemma_edge.runtime.executors.run_plan import longest_context, made_anonymous
from gemma_edge.runtime.formats.flatbuffer import Table, root_of
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind
from gemma_edge.runtime.formats.tflite_model import Operator, TensorType, builtin_code

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DrafterShape:
    """What a drafter's memory depends on. reads: names of caches."""

    weights_bytes: int
    by_clusters: bool
    reads: tuple[str, ...]


@dataclass(frozen=True)
class BundlePlan:
    """The sizes a footprint depends on.

    cache_shapes: K [1,K,S,E] and V [1,K,E,S] of each layer that owns them. cache_value_bytes: of one of their values.
    """

    weights_bytes: int
    embedder_bytes: int
    ple_bytes: int
    cache_shapes: Mapping[str, Shape]
    cache_value_bytes: int
    calls: tuple[Call, ...]
    activations: ActivationShape
    encoders: tuple[EncoderShape, ...]
    drafter: DrafterShape | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> "BundlePlan":
        """Raises BundleError without a decoder, BundleMismatchError where its graph is not one of ours."""

        def nbytes(model_type: ModelType) -> int:
            section = bundle.find(SectionKind.TFLITE_MODEL, model_type)
            return 0 if section is None else section.nbytes

        encoders = tuple(_encoders(bundle))
        decoder = bundle.section(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE)
        try:
            return cls(
                decoder.nbytes,
                nbytes(ModelType.EMBEDDER),
                nbytes(ModelType.PER_LAYER_EMBEDDER),
                *_read_shapes(bundle.view(decoder)),
                encoders,
                _drafter(bundle),
            )
        except Exception as error:  # it is not verified yet: anything may come out of it
            raise BundleMismatchError(
                f"{bundle.path}: found no decoder with kv_cache_* and prefill_* signatures, its memory cannot be "
                "computed; convert the checkpoint with gemma-edge"
            ) from error

    @property
    def context_tokens(self) -> int:
        """Slots of the longest cache."""
        return self.activations.context_tokens

    def footprint(
        self, context_tokens: int | None = None, *, anonymous_weights: bool = False, slots: int = 1
    ) -> Footprint:
        """The peak of a run.

        context_tokens: a context shorter than the bundle's; pages of a cache beyond it are never written.
        anonymous_weights: there is no weight cache, or it lies in a file system that is memory.
        slots: conversations that keep their keys and values at once.
        """
        context = context_tokens or self.context_tokens
        rings = [self._cache_bytes(name) for name in self.cache_shapes if self._is_ring(name)]
        planned = litert_footprint(
            weights_bytes=self.weights_bytes,
            embedder_bytes=self.embedder_bytes,
            ple_bytes=self.ple_bytes,
            kv_bytes=sum(self._cache_bytes(name, context) for name in self.cache_shapes),
            ring_bytes=sum(rings),
            largest_ring_bytes=2 * max(rings, default=0),  # keys are as large as values
            kv_is_half=self.cache_value_bytes < FLOAT_BYTES,
            calls=self.calls,
            shape=self.activations,
            slots=slots,
        )
        if self.drafter is not None:
            is_half = self.cache_value_bytes < FLOAT_BYTES
            planned = with_drafter(
                planned,
                self.drafter.weights_bytes,
                self.activations.vocab_size,
                by_clusters=self.drafter.by_clusters,
                half_bytes=sum(map(self._cache_bytes, self.drafter.reads)) if is_half else 0,
            )
        planned = with_encoders(planned, self.encoders)
        return made_anonymous(planned) if anonymous_weights else planned

    def longest_context(self, budget: MemoryBudget, *, anonymous_weights: bool = False, slots: int = 1) -> int | None:
        """As `longest_context`; the shortest is one prefill chunk."""
        return longest_context(self, budget, max(call.rows for call in self.calls), anonymous_weights, slots)

    def _is_ring(self, name: str) -> bool:
        return slots_of(name, self.cache_shapes[name]) < self.context_tokens

    def _cache_bytes(self, name: str, context_tokens: int | None = None) -> int:
        """All of a cache, or what a shorter context writes of it."""
        shape = self.cache_shapes[name]
        slots = slots_of(name, shape)
        return prod(shape) // slots * min(slots, context_tokens or slots) * self.cache_value_bytes


def _drafter(bundle: Bundle) -> DrafterShape | None:
    if not has_model(bundle, ModelType.MTP_DRAFTER):
        return None
    section = bundle.section(SectionKind.TFLITE_MODEL, ModelType.MTP_DRAFTER)
    inputs = model_shapes(bundle, ModelType.MTP_DRAFTER).inputs
    operators = map(builtin_code, sane(root_of(bundle.view(section), "Model").operator_codes))
    reads = tuple(name for name in inputs if name.startswith("kv_cache_"))
    return DrafterShape(section.nbytes, Operator.TOPK_V2 in operators, reads)


def _encoders(bundle: Bundle) -> Iterator[EncoderShape]:
    def nbytes(*model_types: ModelType) -> int:
        return sum(section_range(bundle, model_type).nbytes for model_type in model_types)

    if (vision := vision_size(bundle)) is not None:
        weights_bytes = nbytes(ModelType.VISION_ENCODER, ModelType.VISION_ADAPTER)
        yield EncoderShape(vision.design, weights_bytes, vision.inputs)
    if (audio := audio_size(bundle)) is not None:
        weights_bytes = nbytes(ModelType.AUDIO_ENCODER, ModelType.AUDIO_ADAPTER)
        yield EncoderShape(audio.design, weights_bytes, audio.inputs)


def _read_shapes(section: memoryview) -> tuple[dict[str, Shape], int, tuple[Call, ...], ActivationShape]:
    """Cache shapes, bytes of one of their values, the calls, and what the size of activations depends on."""
    model = root_of(section, "Model")
    signatures = {_name(model, signature): signature for signature in sane(model.signature_defs)}
    names = (key.rpartition("/")[2] for key in signatures)  # of a second model, too
    calls = tuple(call for name in names if (call := Call.of_name(name)) is not None)
    longest = max((call for call in calls if call.past is None and not call.has_logits), key=lambda call: call.rows)
    prefill_tokens = longest.rows
    signature = signatures[longest.name]
    graph = model.subgraphs[signature.subgraph_index]
    tensors = {entry.name.decode(): graph.tensors[entry.tensor_index] for entry in sane(signature.inputs)}
    inputs = {name: shape_of(tensor) for name, tensor in tensors.items()}
    caches = {name: shape for name, shape in inputs.items() if name.startswith("kv_cache_")}
    is_half = any(tensors[name].type == TensorType.FLOAT16 for name in caches)
    context_tokens = max(slots_of(name, shape) for name, shape in caches.items())
    width = inputs["embeddings"][-1]
    ple_values = prod(inputs["per_layer_embeddings"][2:]) if "per_layer_embeddings" in inputs else 0
    shapes = {shape_of(tensor) for tensor in sane(graph.tensors)}
    kv_heads = next(iter(caches.values()))[1]
    score_lengths = {slots_of(name, shape) + prefill_tokens for name, shape in caches.items()}
    # Attention scores are [1, K, H/K * T, S+T].
    heads = max(
        kv_heads * shape[2] // prefill_tokens
        for shape in shapes
        if len(shape) == 4 and shape[1] == kv_heads and shape[3] in score_lengths
    )
    ffn_width = max(shape[2] for shape in shapes if len(shape) == 3 and shape[:2] == (1, prefill_tokens))
    # AltUp's state is [1, T, A, D]; Gemma 3 and 4 have none.
    states = [shape[2] for shape in shapes if len(shape) == 4 and shape[1] == prefill_tokens and shape[3] == width]
    altup_inputs = max(states, default=1) if ple_values else 1
    activations = ActivationShape(
        context_tokens,
        heads,
        kv_heads,
        width,
        ffn_width,
        altup_inputs,
        ple_values,
        kv_values=sum(prod(shape) // slots_of(name, shape) for name, shape in caches.items()),
        vocab_size=_vocab_size(model, signatures["decode"]),
    )
    return caches, FLOAT_BYTES // 2 if is_half else FLOAT_BYTES, calls, activations


def _name(model: Table, signature: Table) -> str:
    """As `ModelSection` has it."""
    graph = model.subgraphs[signature.subgraph_index]
    positions = [entry.tensor_index for entry in sane(signature.inputs) if entry.name == b"input_pos"]
    rows = shape_of(graph.tensors[positions[0]])[0] if positions else 0
    return own_name(signature.signature_key.decode(), rows)


def _vocab_size(model: Table, decode: Table) -> int:
    graph = model.subgraphs[decode.subgraph_index]
    [logits] = (graph.tensors[entry.tensor_index] for entry in sane(decode.outputs) if entry.name == b"logits")
    return shape_of(logits)[-1]
