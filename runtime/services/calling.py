"""One question, answered with a call of a function or with words. The call is returned and not run.

A `Conversation` with `tools=` runs calls itself, several from one request, and answers with their results.
"""

from typing import NotRequired, TypedDict

from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.services.chats import sending
from gemma_edge.runtime.services.errors import ServiceError, known
from gemma_edge.runtime.services.functions import FunctionCall, Functions, described
from gemma_edge.runtime.services.request import GenerationConfig

_SURE = GenerationConfig(max_tokens=256, temperature=0.3, repetition_penalty=1.0)


class CallReply(FunctionCall):
    """further_calls: what the model wants called besides, in order."""

    further_calls: NotRequired[list[FunctionCall]]


class TextReply(TypedDict):
    """What the model said where no function helps."""

    response: str


def gemma_function_calling(
    engine: Engine, user_query: str, available_functions: Functions, config: GenerationConfig = _SURE
) -> CallReply | TextReply:
    """What the model wants called for a question: {"function_name", "parameters"}, or {"response": text}.

    The functions are shown in the notation that the bundle was trained on; a call is checked against its schema.

    Raises:
        ServiceError: no functions; a call of none of them, with other parameters, not readable, or cut off.
    """
    functions = {function.name: function for function in described(available_functions)}
    with engine.create_conversation(
        tools=list(functions.values()), automatic_tool_calling=False, sampler_config=config.sampler
    ) as conversation:
        reply = conversation.send_message(user_query, **sending(config))
    calls = [functions[known("function", call.name, functions)].call(call.arguments) for call in reply.tool_calls]
    if calls:
        first, *others = calls
        found = CallReply(function_name=first["function_name"], parameters=first["parameters"])
        if others:
            found["further_calls"] = others
        return found
    text = str(reply)
    if engine.text_model.tool_syntax.fence_start in text:
        why = "cut off" if reply.finish_reason == "length" else "no call"
        raise ServiceError(f"the model wrote a call that is {why}: {text[:80]!r}; ask again, or raise max_tokens")
    return TextReply(response=text)
