"""Tools as they are, for templates that show them in their own way (`use_template_for_fc_format` of LlmMetadata).

Such a template gets declarations, calls and results as JSON; only a reply is parsed here. What stands around a call and
which notation it is in, the bundle says (LiteRT-LM's function_gemma_data_processor and parser_utils at 0.18.1).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litert_lm_builder.runtime.proto.llm_model_type_pb2 import FunctionGemma

from gemma_edge.runtime.chat.calls.function_gemma import FUNCTION_GEMMA_SYNTAX
from gemma_edge.runtime.chat.calls.python_syntax import PYTHON_SYNTAX
from gemma_edge.runtime.chat.calls.syntax import Call, ToolSyntax, ToolSyntaxError


def template_syntax(model: FunctionGemma) -> ToolSyntax:
    """The syntax of a bundle whose template writes tools by itself."""
    parsers: dict[str, Callable[[str], Sequence[Call]]] = {"json": _parse, "python": PYTHON_SYNTAX.parse}
    usual = FUNCTION_GEMMA_SYNTAX
    return ToolSyntax(
        model.code_fence_start or usual.fence_start,
        model.code_fence_end or usual.fence_end,
        usual.is_quotable,
        _as_it_is,
        _as_it_is,
        _as_it_is,
        parsers.get(model.syntax_type, usual.parse),
        shows_json=True,
    )


def _as_it_is(value: Any) -> Any:
    return value


def _parse(text: str) -> list[Call]:
    """Calls as {"name": ..., "arguments": {...}}, one or a list of them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ToolSyntaxError(f"not JSON: {error}") from error
    calls = []
    for entry in found if isinstance(found, list) else [found]:
        arguments = entry.get("arguments", entry.get("args", {})) if isinstance(entry, Mapping) else None
        if not isinstance(arguments, Mapping) or not isinstance(entry.get("name"), str):
            raise ToolSyntaxError(f"{str(entry)[:40]!r} is no call: an object with name and arguments is expected")
        calls.append(Call(entry["name"], arguments))
    return calls
