"""A plan as a MediaPipe LLM bundle (.task), for MediaPipe's LLM Inference and for LiteRT-LM, which reads both.

The TFLite sections are those of the .litertlm; tokenizer and metadata are MediaPipe's. The format has no word for rings
(a reader takes the shortest KV cache for the context), none for the context length, the sampler or a chat template: an
application gets the Gemma turn markers and the limits of the model's shapes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import sentencepiece
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.litert.bundle import LitertBundle, PlannedSection, tokenizer_of
from gemma_edge.converter.litert.file import TfliteFile
from gemma_edge.converter.litert.metadata import TURN_END, TURN_START, stop_token_ids
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.stream import NO_ROUNDS, Look, Round, Stream
from gemma_edge.runtime.formats import task
from gemma_edge.runtime.formats.litertlm import SectionKind, SectionSpec


@dataclass(frozen=True)
class TaskBundle:
    """Everything about the file but its weights; used as LitertBundle is."""

    plan: Plan
    sections: tuple[PlannedSection, ...]

    @classmethod
    def lay_out(cls, plan: Plan, checkpoint: Path) -> "TaskBundle":
        """Emit the graphs and collect metadata and tokenizer; reads no weight.

        Raises TokenizerError or MetadataError where the checkpoint's side files cannot be used.
        """
        if any(plan.cache_layout.is_ring(cache.window) for cache in plan.caches):
            raise ValueError("a .task bundle cannot describe ring caches; plan with full ones")
        kept = (SectionKind.TFLITE_MODEL, SectionKind.SENTENCEPIECE_TOKENIZER)
        sections = [s for s in LitertBundle.lay_out(plan, checkpoint).sections if s.spec.kind in kept]
        tokenizer = next(s.content for s in sections if isinstance(s.content, bytes))
        metadata = llm_parameters(checkpoint, tokenizer)
        sections.append(PlannedSection(SectionSpec(SectionKind.GENERIC_BINARY, len(metadata)), metadata))
        return cls(plan, tuple(sections))

    @property
    def nbytes(self) -> int:
        """Size of the finished file."""
        return self._layout.nbytes

    @property
    def tokenizer(self) -> bytes:
        """A serialised SentencePiece model."""
        return tokenizer_of(self.sections)

    def write(
        self,
        file: BinaryIO,
        checkpoint: Checkpoint,
        identity: Callable[[], str],  # noqa: ARG002  a .task carries no identifier
        on_bytes: Callable[[int], None],
        rounds: Mapping[str, Round] = NO_ROUNDS,
        look: Look | None = None,
    ) -> dict[str, QuantError]:
        """Stream the weights, then everything else; returns the errors by tensor name."""
        errors: dict[str, QuantError] = {}
        file.truncate(self.nbytes)
        for section, entry in zip(self.sections, self._layout.entries, strict=True):
            if isinstance(section.content, TfliteFile):
                stream = Stream(checkpoint, self.plan.specs, self.plan.storages, file, entry.begin, rounds, look)
                errors |= stream.write(section.content.weights.values(), on_bytes)
                stream.put(section.content.root(), 0)  # last: it holds the scales measured
            else:
                file.seek(entry.begin)
                file.write(section.content)
        self._layout.finish(file)
        return errors

    @property
    def _layout(self) -> task.TaskLayout:
        return task.TaskLayout.of({_entry_name(section): section.spec.nbytes for section in self.sections})


def _entry_name(section: PlannedSection) -> str:
    match section.spec.kind:
        case SectionKind.TFLITE_MODEL:
            return section.name.upper()  # tf_lite_embedder -> TF_LITE_EMBEDDER
        case SectionKind.SENTENCEPIECE_TOKENIZER:
            return task.TOKENIZER
        case _:
            return task.METADATA


def llm_parameters(checkpoint: Path, tokenizer: bytes) -> bytes:
    """A serialised LlmParameters: start and stop tokens by name, what surrounds a prompt."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    parameters = _llm_parameters_class()(
        start_token=pieces.id_to_piece(pieces.bos_id()),
        stop_tokens=[pieces.id_to_piece(number) for number in stop_token_ids(checkpoint, pieces)],
    )
    parameters.prompt_template.prompt_prefix = f"{TURN_START}user\n"
    parameters.prompt_template.prompt_suffix = f"{TURN_END}\n{TURN_START}model\n"
    data: bytes = parameters.SerializeToString(deterministic=True)
    return data


@cache
def _llm_parameters_class() -> Any:
    """The fields used here of LlmParameters, from mediapipe/tasks/cc/genai/inference/proto/llm_params.proto.

    Declared in place: mediapipe's wheels dropped the generated class after 0.10, and bring OpenCV and more.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="llm_params.proto", package="odml.infra.proto", syntax="proto3")
    template = file.message_type.add(name="PromptTemplate")
    template.field.add(name="prompt_prefix", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    template.field.add(name="prompt_suffix", number=3, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    message = file.message_type.add(name="LlmParameters")
    message.oneof_decl.add(name="start_token_union")
    message.field.add(name="start_token", number=6, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL, oneof_index=0)
    message.field.add(name="stop_tokens", number=5, type=kinds.TYPE_STRING, label=kinds.LABEL_REPEATED)
    message.field.add(
        name="prompt_template",
        number=8,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_OPTIONAL,
        type_name=".odml.infra.proto.PromptTemplate",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("odml.infra.proto.LlmParameters"))
