"""Functions that a model may call, described in any of the ways that the documents do, and the check of a call."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

from gemma_edge.runtime.chat.tools import Tool, tool_from_function
from gemma_edge.runtime.services.errors import ServiceError
from gemma_edge.runtime.text.json_schema import checker

OneFunction: TypeAlias = Callable[..., Any] | Tool | Mapping[str, Any]
Functions: TypeAlias = Sequence[OneFunction] | Mapping[str, OneFunction]
"""Python functions, tools, or descriptions {"name", "description", "parameters": JSON schema}; also by name."""


class FunctionCall(TypedDict):
    """What the model wants to have called."""

    function_name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Described(Tool):
    """A function as the model is shown it; it is not run here. schema: JSON schema of its parameters."""

    name: str
    description: str
    schema: Mapping[str, Any]

    @property
    def properties(self) -> Mapping[str, Mapping[str, Any]]:
        """The schema of each parameter, by name."""
        return self.schema.get("properties") or {}

    @property
    def required(self) -> Sequence[str]:
        return self.schema.get("required") or ()

    def get_tool_description(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": dict(self.schema)}
        return {"type": "function", "function": function}

    def execute(self, param: Mapping[str, Any]) -> Any:
        raise ServiceError(f"{self.name} is described and not run here ({dict(param)}); run the call that was returned")

    def call(self, arguments: Mapping[str, Any]) -> FunctionCall:
        """A call with these arguments. Raises ServiceError: it has not the parameters that the function takes."""
        unknown = sorted(set(arguments) - set(self.properties))
        wrong = f"it takes no {', '.join(unknown)}" if unknown else checker(self.schema)(json.dumps(dict(arguments)))
        if wrong:
            raise ServiceError(f"the model called {self.name} with {dict(arguments)}: {wrong}; ask again, or reword it")
        return FunctionCall(function_name=self.name, parameters=dict(arguments))


def described(functions: Functions) -> list[Described]:
    """Each function as the model is shown it. Raises ServiceError: none, or one without a name. ToolError."""
    items = functions.items() if isinstance(functions, Mapping) else ((None, function) for function in functions)
    found = [_described(name, function) for name, function in items]
    if not found:
        raise ServiceError("there are no functions to call, expected at least one; describe one")
    return found


def _described(given: str | None, function: OneFunction) -> Described:
    if isinstance(function, Mapping):
        description = function.get("function", function)
    else:
        tool = function if isinstance(function, Tool) else tool_from_function(function)
        description = tool.get_tool_description()["function"]
    name = given or description.get("name")
    parameters = description.get("parameters") or {}
    is_schema = isinstance(parameters, Mapping) and (
        not parameters or "properties" in parameters or parameters.get("type") == "object"
    )
    if not isinstance(name, str) or not is_schema:
        raise ServiceError(
            f"a function is described as {str(dict(description))[:80]}, expected name, description and parameters (a "
            "JSON schema); describe it so"
        )
    return Described(name, str(description.get("description", "")), {"type": "object", **parameters})
