"""Tools as they are, for templates that show them in their own way (`use_template_for_fc_format` of LlmMetadata).

Such a template gets declarations, calls and results as JSON; only a reply is parsed here. What stands around a call and
which notation it is in, the bundle says (LiteRT-LM's function_gemma_data_processor and parser_utils at 0.18.1).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from gemma_edge.runtime.chat.calls.function_gemma import FUNCTION_GEMMA_SYNTAX
from gemma_edge.runtime.chat.calls.python_calls import json_calls, python_calls
from gemma_edge.runtime.chat.calls.syntax import Call, ToolSyntax, ToolSyntaxError
from gemma_edge.runtime.formats.tool_calls import CallFences
from gemma_edge.runtime.text.template import ChatTemplate, TemplateError


def template_syntax(calls: CallFences) -> ToolSyntax:
    """The syntax of a bundle whose template writes tools by itself; FunctionGemma's fences where it knows none."""
    parsers: dict[str, Callable[[str], Sequence[Call]]] = {"json": _parse, "python": python_calls}
    usual = FUNCTION_GEMMA_SYNTAX
    return ToolSyntax(
        calls.start or usual.fence_start,
        calls.end or usual.fence_end,
        usual.is_quotable,
        _as_it_is,
        _as_it_is,
        _as_it_is,
        parsers.get(calls.notation, usual.parse),
        shows_json=True,
    )


def reads_results(template: ChatTemplate) -> bool:
    """Whether it writes a result that is JSON in a notation of its own, as Gemma 4's does. Others write it as the text
    that it is.
    """
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    result = {"probe": [1]}

    def shown(response: object) -> str:
        talk = [
            {"role": "user", "content": [{"type": "text", "text": "Probe."}]},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": [{"type": "tool_response", "name": "f", "response": response}]},
        ]
        return template.render(talk, [tool], False, {})

    try:
        return shown(result) != shown(json.dumps(result))
    except TemplateError:
        return True


def _as_it_is(value: Any) -> Any:
    return value


def _parse(text: str) -> list[Call]:
    """Calls as {"name": ..., "arguments": {...}}, one or a list of them; in Python's spelling, too, as models slip."""
    calls = json_calls(text)
    if calls is None:
        try:
            return python_calls(text)
        except ToolSyntaxError as error:
            raise ToolSyntaxError(f"no call in JSON, with a name and arguments: {error}") from error
    if not calls:
        raise ToolSyntaxError("there is no call in it")
    return calls
