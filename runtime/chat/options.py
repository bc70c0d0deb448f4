"""What a conversation is made with, and what it may be asked for with a message."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.messages import Message
from gemma_edge.runtime.chat.tools import Tool, ToolEventHandler
from gemma_edge.runtime.text.constraints import ConstrainedDecodingConfig, ConstraintError, ResponseFormat
from gemma_edge.runtime.text.penalties import Penalties
from gemma_edge.runtime.text.sampler import SamplerConfig


@dataclass(frozen=True)
class ThinkingConfig:
    """Asks the chat template for reasoning (`enable_thinking`), which a message has in its `channels`. Gemma 3 and 3n
    have none; the budget is not used.
    """

    enable_thinking: bool = True
    thinking_token_budget: int = -1


@dataclass(frozen=True, kw_only=True)
class ConversationOptions:
    """What a conversation is made with; what litert_lm has, too, is called as there.

    messages: what was said before. tools: functions or `Tool`s. tool_event_handler: sees calls and results.
    automatic_tool_calling: whether calls are answered here. max_tool_rounds: calls in a row before ToolLoopError.
    extra_context: variables of the chat template. sampler_config: by default the bundle's. system_message: the first of
    the messages, as text. max_output_tokens: of one reply. chat_template: in place of the bundle's.
    sanitize_control_tokens: whether control tokens that a user or an earlier reply wrote out stay text, as they always
    do in what tools are called and say. enable_speculative_decoding: as of `Engine`, by default the engine's.
    """

    messages: Sequence[Json | Message] | None = None
    tools: Sequence[Callable[..., Any] | Tool] | None = None
    tool_event_handler: ToolEventHandler | None = None
    automatic_tool_calling: bool = True
    max_tool_rounds: int = 10
    extra_context: Mapping[str, Any] | None = None
    thinking_config: ThinkingConfig | None = None
    sampler_config: SamplerConfig | None = None
    system_message: str | None = None
    constrained_decoding_config: ConstrainedDecodingConfig | None = None
    max_output_tokens: int | None = None
    chat_template: str | None = None
    sanitize_control_tokens: bool = False
    enable_speculative_decoding: bool | None = None


_Fields = ParamSpec("_Fields")
_Owner = TypeVar("_Owner")
_Options = TypeVar("_Options")
_Made = TypeVar("_Made")


def as_keywords(
    options: Callable[_Fields, _Options],
) -> Callable[[Callable[[_Owner, _Options], _Made]], Callable[Concatenate[_Owner, _Fields], _Made]]:
    """Makes of a method that takes `options` one that takes their fields by name, so that they are spelled once."""

    def decorate(method: Callable[[_Owner, _Options], _Made]) -> Callable[Concatenate[_Owner, _Fields], _Made]:
        @wraps(method)
        def call(self: _Owner, /, *args: _Fields.args, **fields: _Fields.kwargs) -> _Made:
            return method(self, options(*args, **fields))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.Signature([own, *inspect.signature(options).parameters.values()])
        call.__signature__ = signature  # type: ignore[attr-defined]  # what help() and editors show
        return call

    return decorate


@dataclass(frozen=True)
class SendOptions:
    """What one call of `send_message` asks for beside the message."""

    penalties: Penalties
    max_output_tokens: int | None
    extra_context: Mapping[str, Any]
    response_format: ResponseFormat | None


def check_format(wanted: ResponseFormat | None, config: ConstrainedDecodingConfig | None) -> None:
    """Raises ConstraintError: a format where the conversation was made without formats."""
    if wanted is not None and config is not None and not config.enable:
        raise ConstraintError(
            "response_format was given but constrained_decoding_config.enable is False; enable it or leave it out"
        )
