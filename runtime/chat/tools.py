"""Functions the model may call: describing them, running them, answering with what they return."""

import functools
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.chat.calls.docstring import docstring_of
from gemma_edge.runtime.chat.calls.result import json_result
from gemma_edge.runtime.chat.calls.schema import schema_of, value_of
from gemma_edge.runtime.kv.waiting import result_of

_log = logging.getLogger(__name__)


class ToolError(GemmaEdgeError, ValueError):
    """A tool's description is unusable. Also a ValueError, which is what litert_lm raises."""


class ToolLoopError(GemmaEdgeError, RuntimeError):
    """The model went on calling tools instead of answering. The conversation is as it was before the message."""


class Tool(ABC):
    """Something the model may have run."""

    @abstractmethod
    def get_tool_description(self) -> dict[str, Any]:
        """{"type": "function", "function": {"name", "description", "parameters": JSON schema}}."""

    @abstractmethod
    def execute(self, param: Mapping[str, Any]) -> Any:
        """Runs it. A result that is no JSON is told as `json_result` writes it, an exception as an error.

        May be a coroutine function: it runs in the event loop of `asend_message`, else in one of its own.
        """


class ToolEventHandler(ABC):
    """Sees every call before it runs and every result before the model does."""

    @abstractmethod
    def approve_tool_call(self, tool_call: dict[str, Any]) -> bool:
        """Whether to run it. A call that is not approved gets no answer."""

    @abstractmethod
    def process_tool_response(self, tool_response: Any) -> Any:
        """The result as the model shall see it."""


def tool_from_function(func: Callable[..., Any]) -> Tool:
    """A tool whose description is read off a function: its name, annotations and docstring ("Args:" section).

    Also of a functools.partial, an object that can be called, or an async function. Raises ToolError: a lambda, or a
    built-in that does not tell its parameters.
    """
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
            name = _name_of(tool)
            if name in self._tools:
                raise ToolError(f"two tools are called {name}, the model could not choose; rename one")
            self._tools[name] = tool
        self.descriptions = [tool.get_tool_description() for tool in self._tools.values()]

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """The names of each tool's parameters, in order."""
        functions = [description["function"] for description in self.descriptions]
        return {f["name"]: tuple((f.get("parameters") or {}).get("properties") or ()) for f in functions}

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
            result = self._result(lambda: run_tool(tool, call["function"].get("arguments", {})), name)
        if self._event_handler is not None:
            result = self._event_handler.process_tool_response(result)
        return self._result(lambda: json_result(result), name)

    @staticmethod
    def _result(work: Callable[[], Any], name: str) -> Any:
        """The model is told what went wrong: it can often correct itself."""
        try:
            return work()
        except Exception as error:  # whatever a tool of the user's raises
            _log.warning("tool %s failed", name, exc_info=True)
            return f"Error: {error}" if str(error) else f"Error: {type(error).__name__}"


def run_tool(tool: Tool, arguments: Mapping[str, Any]) -> Any:
    """Runs a tool and waits for it where it is a coroutine."""
    return result_of(tool.execute(arguments))


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
        self._parameters = _signature(func).parameters
        self._name = _function_name(func)

    def get_tool_description(self) -> dict[str, Any]:
        documented = docstring_of(_documented(self._func))
        properties: dict[str, Any] = {}
        required = []
        for name, parameter in self._parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            schema = schema_of(parameter.annotation)
            said = [documented.parameters.get(name, ""), schema.pop("description", "")]
            if any(said):
                schema["description"] = " ".join(text for text in said if text)
            properties[name] = schema
            if parameter.default is inspect.Parameter.empty:
                required.append(name)
        return {
            "type": "function",
            "function": {
                "name": self._name,
                "description": documented.text,
                "parameters": {"type": "object", "properties": properties, "required": required},
            },
        }

    def execute(self, param: Mapping[str, Any]) -> Any:
        positional, named = [], {}
        for name, value in param.items():
            parameter = self._parameters.get(name)
            try:
                converted = value if parameter is None else value_of(parameter.annotation, value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"argument {name}: {error}") from error
            if parameter is not None and parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(converted)
            else:
                named[name] = converted
        return self._func(*positional, **named)


def _function_name(func: Callable[..., Any]) -> str:
    """Of an object that can be called, its class's name."""
    inner = func.func if isinstance(func, functools.partial) else func
    name = getattr(inner, "__name__", type(inner).__name__)
    if name == "<lambda>":
        raise ToolError("a tool is a lambda, expected a function with a name to call it by; write it with def")
    return str(name)


def _documented(func: Callable[..., Any]) -> Any:
    """What holds the docstring: of an object that can be called, its __call__ rather than its class."""
    inner = func.func if isinstance(func, functools.partial) else func
    if inspect.isroutine(inner) or inspect.isclass(inner):
        return inner
    call = type(inner).__call__
    return call if call.__doc__ else inner


def _signature(func: Callable[..., Any]) -> inspect.Signature:
    """With annotations that are text ("from __future__ import annotations") looked up where they can be."""
    try:
        return inspect.signature(func, eval_str=True)
    except NameError:
        return inspect.signature(func)
    except (ValueError, TypeError) as error:  # some built-in functions have none
        raise ToolError(f"{func!r} does not tell its parameters ({error}); wrap it in a function that does") from error
