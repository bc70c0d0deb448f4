"""What a bundle can do, read from its header and metadata without loading the model. Names are litert_lm's."""

import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind
from gemma_edge.runtime.text.sampler import SamplerConfig


class LiteRtLmModality(IntEnum):
    """A kind of input."""

    TEXT = 0
    VISION = 1
    AUDIO = 2
    VIDEO = 3


class LiteRtLmModelType(IntEnum):
    """A kind of model."""

    UNKNOWN = 0
    LLM = 1
    EMBEDDING = 2


@dataclass(frozen=True)
class SupportedModalities:
    """Which inputs a model takes."""

    text: bool
    vision: bool
    audio: bool
    video: bool


class LlmCapability:
    """What the language model of a bundle can do."""

    def __init__(self, bundle: Bundle) -> None:
        self._metadata = bundle.metadata()
        self._drafter = bundle.find(SectionKind.TFLITE_MODEL, "tf_lite_mtp_drafter") is not None

    def has_speculative_decoding_support(self) -> bool:
        """Whether it brings a drafter."""
        return self._drafter

    def supports_thinking(self) -> bool:
        """Whether it writes its reasoning before the answer."""
        return bool(self._metadata.supports_thinking)

    def supports_function_calling(self) -> bool:
        """Whether its template shows tools."""
        return bool(self._metadata.supports_function_calling)

    @property
    def default_sampler_params(self) -> SamplerConfig:
        """How it samples unless told otherwise."""
        parameters = self._metadata.sampler_params
        return SamplerConfig(top_k=parameters.k or None, top_p=parameters.p, temperature=parameters.temperature)

    @property
    def is_dynamic_context(self) -> bool:
        """Whether the context can be lengthened; the converter writes KV caches of a fixed length."""
        return False


class ModelInfoError(GemmaEdgeError, RuntimeError):
    """It was closed. Also a RuntimeError, as litert_lm raises."""


class ModelInfo:
    """A bundle's description."""

    def __init__(self, model_path: str | os.PathLike[str]) -> None:
        """Raises BundleError: no bundle, or a damaged one."""
        self._bundle = Bundle.open(Path(model_path))
        is_llm = self._bundle.find(SectionKind.LLM_METADATA) is not None
        self._is_closed = False
        self._llm = LlmCapability(self._bundle) if is_llm else None

    @property
    def llm(self) -> LlmCapability | None:
        """None where the bundle holds no language model."""
        self._check_open()
        return self._llm

    @property
    def model_type(self) -> LiteRtLmModelType:
        self._check_open()
        return LiteRtLmModelType.UNKNOWN if self._llm is None else LiteRtLmModelType.LLM

    @property
    def is_llm_model(self) -> bool:
        return self.model_type is LiteRtLmModelType.LLM

    @property
    def is_dynamic_context(self) -> bool:
        self._check_open()
        return self._llm is not None and self._llm.is_dynamic_context

    @property
    def input_modalities(self) -> SupportedModalities:
        """By the encoders it brings."""
        self._check_open()
        return SupportedModalities(
            text=self.is_llm_model,
            vision=self._has(ModelType.VISION_ENCODER),
            audio=self._has(ModelType.AUDIO_ENCODER),
            video=False,
        )

    @property
    def max_context_tokens(self) -> int:
        """The length of its KV cache; 0 where it holds no language model."""
        self._check_open()
        return int(self._bundle.metadata().max_num_tokens) if self._llm else 0

    @property
    def min_runtime_version(self) -> str | None:
        """The oldest LiteRT-LM that runs it, if it says so."""
        return self._bundle.metadata().min_runtime_version or None if self._llm else None

    def _check_open(self) -> None:
        if self._is_closed:
            raise ModelInfoError("the model's description is closed; make a new ModelInfo")

    def _has(self, model_type: ModelType) -> bool:
        return self._bundle.find(SectionKind.TFLITE_MODEL, model_type) is not None

    def close(self) -> None:
        """Nothing is held open; afterwards all of it raises, as in litert_lm."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
