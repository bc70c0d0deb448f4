"""A plan as a .litertlm bundle: which sections there are, how large each is to the byte, and writing them."""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.litert.file import TfliteFile
from gemma_edge.converter.litert.lower import emit
from gemma_edge.converter.litert.metadata import CacheBuffer, executor_metadata, llm_metadata
from gemma_edge.converter.litert.tied import write_weights
from gemma_edge.converter.models.matformer.pair import layers_of, small_model
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Look, Quantizer, Stream, write_at
from gemma_edge.converter.tokenizer.chat_template import bundle_template
from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model
from gemma_edge.runtime.formats.digest import sha256_of
from gemma_edge.runtime.formats.litertlm import BundleLayout, ModelType, Section, SectionKind, SectionSpec
from gemma_edge.runtime.formats.model import MODELS_ITEM, NamedModel, models_text

_MODEL_TYPES = {
    DECODER: ModelType.PREFILL_DECODE,
    "embedder": ModelType.EMBEDDER,
    "per_layer_embedder": ModelType.PER_LAYER_EMBEDDER,
    "vision_encoder": ModelType.VISION_ENCODER,
    "vision_adapter": ModelType.VISION_ADAPTER,
    "audio_encoder": ModelType.AUDIO_ENCODER,
    "audio_adapter": ModelType.AUDIO_ADAPTER,
    "end_of_audio": ModelType.END_OF_AUDIO,
    "end_of_vision": ModelType.END_OF_VISION,
    "mtp_drafter": ModelType.MTP_DRAFTER,
}
_SYSTEM = {"Authors": "gemma-edge"}


@dataclass(frozen=True)
class PlannedSection:
    """A section whose size is known: small ones as bytes, TFLite ones as a layout whose weights are still to come."""

    spec: SectionSpec
    content: bytes | TfliteFile

    @property
    def nbytes(self) -> int:
        """Without padding."""
        return self.spec.nbytes

    @property
    def name(self) -> str:
        """ "llm_metadata", "tf_lite_embedder"."""
        return self.spec.model_type or self.spec.kind.name.lower()


@dataclass(frozen=True)
class LitertBundle:
    """Everything about the file but its weights."""

    plan: Plan
    sections: tuple[PlannedSection, ...]

    @classmethod
    def lay_out(cls, plan: Plan, checkpoint: Path) -> "LitertBundle":
        """Emit the graphs and collect metadata and tokenizer; reads no weight.

        Raises TokenizerError or MetadataError where the checkpoint's side files cannot be used.
        """
        model = plan.model
        template = bundle_template(checkpoint, model.media, model.names.template)
        tokenizer = sentencepiece_model(checkpoint, model.config.vocab_size, template.written)
        _give_back_memory()
        metadata = llm_metadata(
            checkpoint,
            model.names.litert,
            plan.context_tokens,
            tokenizer,
            model.image_pixels,
            model.takes_audio,
            template,
            model.patches,
        )
        sections = [
            _bytes(SectionKind.LLM_METADATA, metadata),
            _bytes(SectionKind.SENTENCEPIECE_TOKENIZER, tokenizer),
            _bytes(SectionKind.EXECUTOR_METADATA, _executor_metadata(plan)),
        ]
        files = _tflite_files(plan)
        sizes = {name: tflite.lay_out() for name, tflite in reversed(files.items())}
        for name, tflite in files.items():
            items = {MODELS_ITEM: models_text(_models(plan))} if name == DECODER and plan.target.beside else {}
            spec = SectionSpec(SectionKind.TFLITE_MODEL, sizes[name], _MODEL_TYPES[name], items, tflite.reach)
            sections.append(PlannedSection(spec, tflite))
        return cls(plan, tuple(sections))

    @property
    def nbytes(self) -> int:
        """Size of the finished file."""
        return self._layout().nbytes

    @property
    def tokenizer(self) -> bytes:
        """A serialised SentencePiece model."""
        [content] = (s.content for s in self.sections if s.spec.kind is SectionKind.SENTENCEPIECE_TOKENIZER)
        assert isinstance(content, bytes)
        return content

    @property
    def notes(self) -> Sequence[str]:
        """None: what LiteRT-LM would render otherwise is refused."""
        return ()

    def beside(self, out: Path) -> Mapping[Path, bytes]:  # noqa: ARG002  as other formats have it
        """Nothing."""
        return {}

    def write(
        self,
        file: BinaryIO,
        checkpoint: Checkpoint,
        identity: Callable[[], str],
        on_bytes: Callable[[int], None],
        quantizers: Mapping[str, Quantizer] = NO_QUANTIZERS,
        look: Look | None = None,
    ) -> dict[str, QuantError]:
        """Stream the weights, then everything else; returns the errors by tensor name.

        identity is asked last: a digest of all inputs, from which the bundle's uuid follows. Sizes do not depend on it.
        """
        errors: dict[str, QuantError] = {}
        file.truncate(self.nbytes)
        finished: list[Future[list[str]]] = []
        streamed: list[tuple[PlannedSection, Section]] = []
        stream = Stream(checkpoint, self.plan.specs, self.plan.storages, file, 0, quantizers, look)

        def finish(sections: Sequence[tuple[PlannedSection, Section]]) -> list[str]:
            """Write what is left of sections whose weights are stored; their digests."""
            for planned, place in sections:  # a root is last: it holds the scales measured
                content = planned.content
                write_at(file, content.root() if isinstance(content, TfliteFile) else content, place.begin)
            os.fsync(file.fileno())  # as long as there is other work
            return [sha256_of(file.fileno(), place.begin, place.end) for _, place in sections]

        with ThreadPoolExecutor(1) as finishing:  # of one section while the next one streams
            for planned, section in zip(self.sections, self._layout().sections, strict=True):
                if isinstance(planned.content, TfliteFile):
                    errors |= write_weights(planned.content, replace(stream, begin=section.begin), on_bytes)
                streamed.append((planned, section))
                if not planned.spec.reach:  # else it ends in the next one
                    finished.append(finishing.submit(finish, tuple(streamed)))
                    streamed.clear()
            digests = [digest for each in finished for digest in each.result()]
        layout = self._layout(identity(), digests)
        assert len(layout.header) <= layout.sections[0].begin
        write_at(file, layout.header, 0)
        return errors

    def _layout(self, identity: str = "", digests: Sequence[str] | None = None) -> BundleLayout:
        """The places of the sections; they depend on neither argument, as digests are all of one length."""
        digests = digests or ["0" * 64] * len(self.sections)
        specs = [
            replace(section.spec, items={**section.spec.items, "sha256": digest})
            for section, digest in zip(self.sections, digests, strict=True)
        ]
        return BundleLayout.of(specs, identity, _SYSTEM)


def _tflite_files(plan: Plan) -> dict[str, TfliteFile]:
    """By section, in the order of the bundle: the decoder, whose head may lie in the embedder, is before that."""
    encodings = {name: storage.encoding for name, storage in plan.storages.items()}

    def emitted(name: str, next_file: TfliteFile | None = None) -> TfliteFile:
        description = f"gemma-edge {plan.model.names.litert} {name}"
        return emit(description, list(plan.graphs[name]), encodings, plan.cache_layout, next_file)

    decoder, *others = plan.graphs
    files = {name: emitted(name) for name in others}
    return {decoder: emitted(decoder, next(iter(files.values()))), **files}


def _bytes(kind: SectionKind, content: bytes) -> PlannedSection:
    return PlannedSection(SectionSpec(kind, len(content)), content)


def _models(plan: Plan) -> list[NamedModel]:
    """Both, the large one first."""
    target = plan.target
    assert target.beside is not None
    both = {target.size: plan.model, target.beside.name: small_model(plan.model, target.beside)}
    return [NamedModel(name, *layers_of(model)) for name, model in both.items()]


def _give_back_memory() -> None:
    """Return freed heap to the system: a tokenizer.json of Gemma's size leaves about 100 MB behind otherwise."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def _executor_metadata(plan: Plan) -> bytes:
    buffers = [CacheBuffer(cache.layer, plan.cache_layout.is_ring(cache.window), cache.slots) for cache in plan.caches]
    return executor_metadata(buffers, plan.context_tokens)
