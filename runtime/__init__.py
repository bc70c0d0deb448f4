"""On-device runtime: LiteRT-LM's vocabulary (Engine, Conversation, Session) over LiteRT bundles.

    from gemma_edge.runtime import Backend, Engine

    with Engine("model.litertlm", Backend.CPU(thread_count=4)) as engine:
        with engine.create_conversation() as conversation:
            print(conversation.send_message("Hello"))

Names are loaded when first used: the converter, which needs only `runtime.formats`, pays for none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_edge.runtime.chat.conversation import Conversation as Conversation
    from gemma_edge.runtime.chat.figures import BenchmarkInfo as BenchmarkInfo
    from gemma_edge.runtime.chat.messages import Content as Content
    from gemma_edge.runtime.chat.messages import Contents as Contents
    from gemma_edge.runtime.chat.messages import Message as Message
    from gemma_edge.runtime.chat.messages import Role as Role
    from gemma_edge.runtime.chat.messages import ToolCall as ToolCall
    from gemma_edge.runtime.chat.options import ThinkingConfig as ThinkingConfig
    from gemma_edge.runtime.chat.session import Responses as Responses
    from gemma_edge.runtime.chat.session import Session as Session
    from gemma_edge.runtime.chat.tools import Tool as Tool
    from gemma_edge.runtime.chat.tools import ToolEventHandler as ToolEventHandler
    from gemma_edge.runtime.chat.tools import tool_from_function as tool_from_function
    from gemma_edge.runtime.config import Backend as Backend
    from gemma_edge.runtime.engine import Engine as Engine
    from gemma_edge.runtime.litert_lm_engine import LitertLmEngine as LitertLmEngine
    from gemma_edge.runtime.litert_lm_names import AbstractBenchmark as AbstractBenchmark
    from gemma_edge.runtime.litert_lm_names import AbstractConversation as AbstractConversation
    from gemma_edge.runtime.litert_lm_names import AbstractEngine as AbstractEngine
    from gemma_edge.runtime.litert_lm_names import AbstractSession as AbstractSession
    from gemma_edge.runtime.litert_lm_names import LogSeverity as LogSeverity
    from gemma_edge.runtime.litert_lm_names import ModelType as ModelType
    from gemma_edge.runtime.litert_lm_names import set_min_log_severity as set_min_log_severity
    from gemma_edge.runtime.measure.bench import Benchmark as Benchmark
    from gemma_edge.runtime.tasks.batch import generate_batch as generate_batch
    from gemma_edge.runtime.tasks.media import describe as describe
    from gemma_edge.runtime.tasks.media import transcribe as transcribe
    from gemma_edge.runtime.tasks.media import transcribe_and_translate as transcribe_and_translate
    from gemma_edge.runtime.text.constraints import ConstrainedDecodingConfig as ConstrainedDecodingConfig
    from gemma_edge.runtime.text.constraints import LiteRtLmConstraintProviderType as LiteRtLmConstraintProviderType
    from gemma_edge.runtime.text.constraints import ResponseFormat as ResponseFormat
    from gemma_edge.runtime.text.model_info import LiteRtLmModality as LiteRtLmModality
    from gemma_edge.runtime.text.model_info import LiteRtLmModelType as LiteRtLmModelType
    from gemma_edge.runtime.text.model_info import LlmCapability as LlmCapability
    from gemma_edge.runtime.text.model_info import ModelInfo as ModelInfo
    from gemma_edge.runtime.text.model_info import SupportedModalities as SupportedModalities
    from gemma_edge.runtime.text.penalties import NoRepeatNgramConfig as NoRepeatNgramConfig
    from gemma_edge.runtime.text.penalties import RepetitionPenaltyConfig as RepetitionPenaltyConfig
    from gemma_edge.runtime.text.penalties import SuppressTokensConfig as SuppressTokensConfig
    from gemma_edge.runtime.text.sampler import SamplerConfig as SamplerConfig

_HOMES = {
    "set_min_log_severity": "litert_lm_names",
    "ModelType": "litert_lm_names",
    "LogSeverity": "litert_lm_names",
    "AbstractSession": "litert_lm_names",
    "AbstractEngine": "litert_lm_names",
    "AbstractConversation": "litert_lm_names",
    "AbstractBenchmark": "litert_lm_names",
    "Backend": "config",
    "Benchmark": "measure.bench",
    "BenchmarkInfo": "chat.figures",
    "ConstrainedDecodingConfig": "text.constraints",
    "Content": "chat.messages",
    "Contents": "chat.messages",
    "Conversation": "chat.conversation",
    "Engine": "engine",
    "LiteRtLmConstraintProviderType": "text.constraints",
    "LiteRtLmModality": "text.model_info",
    "LiteRtLmModelType": "text.model_info",
    "LitertLmEngine": "litert_lm_engine",
    "LlmCapability": "text.model_info",
    "Message": "chat.messages",
    "ModelInfo": "text.model_info",
    "NoRepeatNgramConfig": "text.penalties",
    "RepetitionPenaltyConfig": "text.penalties",
    "Responses": "chat.session",
    "ResponseFormat": "text.constraints",
    "Role": "chat.messages",
    "SamplerConfig": "text.sampler",
    "Session": "chat.session",
    "SupportedModalities": "text.model_info",
    "SuppressTokensConfig": "text.penalties",
    "ThinkingConfig": "chat.options",
    "Tool": "chat.tools",
    "ToolCall": "chat.messages",
    "ToolEventHandler": "chat.tools",
    "describe": "tasks.media",
    "generate_batch": "tasks.batch",
    "tool_from_function": "chat.tools",
    "transcribe": "tasks.media",
    "transcribe_and_translate": "tasks.media",
}

__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
