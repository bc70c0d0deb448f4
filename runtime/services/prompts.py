"""Prompts for common jobs, as lists of messages. What they say is data: prompts.toml."""

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gemma_edge.runtime.chat.calls.python_calls import python_calls
from gemma_edge.runtime.chat.calls.syntax import ToolSyntaxError
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.messages import Contents, Message
from gemma_edge.runtime.services.errors import ServiceError, known
from gemma_edge.runtime.services.functions import Described, FunctionCall, Functions, described
from gemma_edge.runtime.services.request import Image, image_content

_MARK = "FUNCTION_CALL:"


def multimodal_prompt(
    text_query: str, *images: Image, image_description: str = "", task_type: str = "analysis"
) -> list[Json]:
    """A question about images, each shown before the text. image_description: what is known of them beside.

    Raises ServiceError: no image, another task_type, or a comparison of one image with nothing.
    """
    task = _data()["tasks"][known("task_type", task_type, _data()["tasks"])]
    if not images:
        raise ServiceError("a multimodal prompt has no image, expected at least one; pass its path or its bytes")
    if task_type == "comparison" and len(images) == 1 and not image_description:
        raise ServiceError(
            "a comparison has one image, expected two, or one and an image_description to compare it with; pass more"
        )
    context = f"\n\nAdditional context: {image_description}" if image_description else ""
    user = Message.user(Contents.of(*map(image_content, images), text_query + context))
    return [_system(task), user.to_json()]


def function_calling_prompt(user_query: str, available_functions: Functions, context: str = "") -> list[Json]:
    """A question that is to be answered with `FUNCTION_CALL: name(param="value")` lines; `parse_function_calls` reads
    them. For models that know no tools: `Conversation(tools=...)` shows them in the notation a bundle was trained on.

    Raises ServiceError: no functions, or one that is not described.
    """
    lines = ["You can call these functions:", ""]
    for function in described(available_functions):
        parameters = [_parameter(function, name) for name in function.properties]
        lines.append(f"- {function.name}: {function.description}")
        lines.append(f"  Parameters: {', '.join(parameters) or 'none'}")
    lines += [
        "",
        f'To call one, write a line of the form {_MARK} name(param1="value1", param2="value2")',
        "Write one such line for each call; several are allowed. Where no function helps, answer in words.",
    ]
    question = f"Context: {context}\n\n{user_query}" if context else user_query
    return [_system("\n".join(lines)), {"role": "user", "content": question}]


def parse_function_calls(reply: str, available_functions: Functions) -> list[FunctionCall]:
    """The calls in a reply to `function_calling_prompt`, in order; none where it answers in words. Nothing is run.

    Raises ServiceError: a line that is no call, or a call that its function does not take.
    """
    functions = {function.name: function for function in described(available_functions)}
    parameters = {name: tuple(function.properties) for name, function in functions.items()}
    found = []
    for line in reply.splitlines():
        _, mark, written = line.partition(_MARK)
        if not mark:
            continue
        try:
            calls = [call.named(parameters) for call in python_calls(written.strip().strip("`"))]
        except ToolSyntaxError as error:
            shown = line.strip()[:80]
            raise ServiceError(f"the reply has a call that cannot be read ({error}): {shown!r}; ask again") from error
        found += [functions[known("function", call.name, functions)].call(call.arguments) for call in calls]
    return found


def culturally_aware_prompt(query: str, target_cultures: Sequence[str], response_style: str = "formal") -> list[Json]:
    """A question with what to mind about the cultures of those it is answered for.

    Raises ServiceError: no culture, or a culture or style that prompts.toml does not have.
    """
    if isinstance(target_cultures, str):
        target_cultures = [target_cultures]
    if not target_cultures:
        raise ServiceError(f"no target_cultures, expected some of {', '.join(cultures())}; name at least one")
    style = _data()["styles"][known("response_style", response_style, styles())]
    chosen = [_data()["cultures"][known("culture", name, cultures())] for name in dict.fromkeys(target_cultures)]
    lines = ["Answer so that it suits readers of these cultures, without stereotypes about any person:", ""]
    lines += [f"- {culture['name']}: {culture['guidance']}" for culture in chosen]
    return [_system("\n".join([*lines, "", style])), {"role": "user", "content": query}]


def cultures() -> list[str]:
    """The names that `culturally_aware_prompt` knows."""
    return list(_data()["cultures"])


def styles() -> list[str]:
    """The styles that `culturally_aware_prompt` knows."""
    return list(_data()["styles"])


def _parameter(function: Described, name: str) -> str:
    schema = function.properties[name]
    allowed = f": one of {', '.join(map(str, schema['enum']))}" if "enum" in schema else ""
    return f"{name} ({schema.get('type', 'any')}{'' if name in function.required else ', optional'}{allowed})"


def _system(text: str) -> Json:
    return {"role": "system", "content": text}


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
