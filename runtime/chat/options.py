"""What a conversation may be asked for with a message."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_edge.runtime.text.constraints import ConstrainedDecodingConfig, ConstraintError, ResponseFormat
from gemma_edge.runtime.text.penalties import Penalties


@dataclass(frozen=True)
class ThinkingConfig:
    """Asks the chat template for reasoning (`enable_thinking`). Gemma 3 and 3n have none; the budget is not used."""

    enable_thinking: bool = True
    thinking_token_budget: int = -1


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
