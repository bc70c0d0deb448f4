"""Functions the model may call: describing them, running them, answering with what they return."""

import inspect
import json
import logging
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError

_log = logging.getLogger(__name__)


class ToolError(GemmaEdgeError, ValueError):
    """A tool's description or result is unusable. Also a ValueError, which is what litert_lm raises."""


class ToolLoopError(GemmaEdgeError):
    """The model went on calling tools instead of answering. The conversation is as it was before the message."""


class Tool(ABC):
    """Something the model may have run."""

    @abstractmethod
    def get_tool_description(self) -> dict[str, Any]:
        """{"type": "function", "function": {"name", "description", "parameters": JSON schema}}."""

    @abstractmethod
    def execute(self, param: Mapping[str, Any]) -> Any:
        """Runs it. The result must be JSON; an exception is told to the model."""


class ToolEventHandler(ABC):
    """Sees every call before it runs and every result before the model does."""

    @abstractmethod
    def approve_tool_call(self, tool_call: dict[str, Any]) -> bool:
        """Whether to run it. A call that is not approved gets no answer."""

    @abstractmethod
    def process_tool_response(self, tool_response: Any) -> Any:
        """The result as the model shall see it."""


def tool_from_function(func: Callable[..., Any]) -> Tool:
    """A tool whose description is read off a function: its name, annotations and docstring ("Args:" section)."""
    return _FunctionTool(func)


class ToolBox:
    """The tools of a conversation, by name."""

    def __init__(
        self, tools: Sequence[Callable[..., Any] | Tool], event_handler: ToolEventHandler | None = None
    ) -> None:
        self._tools: dict[str, Tool] = {}
        self._event_handler = event_handler
        for item in tools:
            tool = item if isinstance(item, Tool) else tool_from_function(item)
            self._tools[_name_of(tool)] = tool
        self.descriptions = [tool.get_tool_description() for tool in self._tools.values()]

    def __len__(self) -> int:
        return len(self._tools)

    def answer(self, tool_calls: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Runs calls ({"function": {"name", "arguments"}}) and returns one tool message for each that was approved."""
        return [
            {"role": "tool", "content": [{"type": "tool_response", "name": name, "response": self._run(name, call)}]}
            for call in tool_calls
            for name in [call["function"]["name"]]
            if self._event_handler is None or self._event_handler.approve_tool_call(dict(call))
        ]

    def _run(self, name: str, call: Mapping[str, Any]) -> Any:
        tool = self._tools.get(name)
        if tool is None:
            result: Any = f"Error: tool {name} not found, there are {', '.join(self._tools)}"
        else:
            try:
                result = tool.execute(call["function"].get("arguments", {}))
            except Exception as error:  # the model can often correct itself when it sees what was wrong
                _log.warning("tool %s failed", name, exc_info=True)
                result = f"Error: {error}"
        if self._event_handler is not None:
            result = self._event_handler.process_tool_response(result)
        try:
            return json.loads(json.dumps(result))
        except (TypeError, ValueError) as error:
            raise ToolError(
                f"tool {name} returned what is not JSON ({error}); return text, numbers, lists or dicts of them"
            ) from error


def _name_of(tool: Tool) -> str:
    description = tool.get_tool_description()
    name = description.get("function", {}).get("name")
    if not isinstance(name, str):
        raise ToolError(
            f"the description of {type(tool).__name__} has no ['function']['name'], found {description!r}; add one"
        )
    return name


class _FunctionTool(Tool):
    def __init__(self, func: Callable[..., Any]) -> None:
        self._func = func

    def get_tool_description(self) -> dict[str, Any]:
        document = inspect.getdoc(self._func) or ""
        descriptions = _parameter_descriptions(document)
        properties: dict[str, Any] = {}
        required = []
        for name, parameter in _signature(self._func).parameters.items():
            properties[name] = _schema(parameter.annotation)
            if name in descriptions:
                properties[name]["description"] = descriptions[name]
            if parameter.default is inspect.Parameter.empty:
                required.append(name)
        return {
            "type": "function",
            "function": {
                "name": self._func.__name__,
                "description": document.split("\n")[0],
                "parameters": {"type": "object", "properties": properties, "required": required},
            },
        }

    def execute(self, param: Mapping[str, Any]) -> Any:
        return self._func(**param)


def _signature(func: Callable[..., Any]) -> inspect.Signature:
    """With annotations that are text ("from __future__ import annotations") looked up where they can be."""
    try:
        return inspect.signature(func, eval_str=True)
    except NameError:
        return inspect.signature(func)


def _schema(annotation: Any) -> dict[str, Any]:
    """JSON schema of an annotation; text for what has no simple one, as in litert_lm."""
    simple = {int: "integer", float: "number", bool: "boolean", str: "string"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        known = [argument for argument in arguments if argument is not type(None)]
        return _schema(known[0]) if len(known) == 1 else {"type": "string"}
    if origin in (list, Sequence, Iterable):
        return {"type": "array", "items": _schema(arguments[0])}
    return {"type": simple.get(annotation, "string") if isinstance(annotation, type) else "string"}


def _parameter_descriptions(document: str) -> dict[str, str]:
    """The "Args:" section of a Google style docstring. A description goes on in lines that are indented further."""
    descriptions: dict[str, str] = {}
    lines = iter(document.split("\n"))
    for line in lines:
        if line.strip() == "Args:":
            break
    name = None
    for line in lines:
        if line.strip() in ("Returns:", "Raises:", "Yields:"):
            break
        match = re.match(r"\s+([\w.]+)(?:\s*\(.*?\))?:\s*(.*)", line)
        if match:
            name = match[1]
            descriptions[name] = match[2].strip()
        elif not line.strip():
            name = None
        elif name is not None and line.startswith(" " * 4):
            descriptions[name] += " " + line.strip()
    return descriptions
