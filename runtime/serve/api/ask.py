"""What a request asks of the model, as values: how the reply is drawn, where it ends, what form it has."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.text.constraints import ResponseFormat
from gemma_edge.runtime.text.penalties import Penalties, RepetitionPenaltyConfig
from gemma_edge.runtime.text.sampler import SamplerConfig

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_PATTERNS = {"pattern", "patternProperties"}
_CHECKED_AT_THE_END = {
    "contains", "dependencies", "dependentSchemas", "if", "not", "oneOf", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties", "uniqueItems",
}  # fmt: skip
# llguidance's: a call is no text to be read, and blanks in it are only tokens.
_COMPACT = {"x-guidance": {"whitespace_flexible": False, "whitespace_pattern": None}}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """choices: how many replies. sampler: of the first; each next one has the next seed.

    stop: texts that end a reply. best: as `Decoding.best`. tools: shown to the model. is_forced: the reply is a call,
    written as JSON. is_stream: whether the reply is sent as it is written, and is_passing: whether nobody will go on
    with it.
    """

    choices: int = 1
    sampler: SamplerConfig
    penalties: Penalties
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    best: int | None = None
    format: ResponseFormat | None = None
    tools: tuple[Json, ...] = ()
    is_forced: bool = False
    has_one_call: bool = False
    is_stream: bool = False
    has_usage: bool = False
    is_passing: bool = False
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)  # names, by the name of the tool

    def sampler_of(self, choice: int) -> SamplerConfig:
        """Each choice has a seed of its own, one after the other."""
        return replace(self.sampler, seed=(self.sampler.seed or 0) + choice)


def read_ask(request: Mapping[str, Any], model: TextModel, most_tokens: int | None) -> Ask:
    """Of a request that was checked, everything but its prompt. Raises RefusedError: what contradicts itself."""
    stop = request.get("stop", ())
    options = request.get("stream_options", {})
    is_stream = request.get("stream", False)
    if options and not is_stream:
        raise _refused("stream_options", "stream_options is given without stream; leave it out, or set stream")
    limits = [request.get(name) for name in ("max_completion_tokens", "max_tokens")]
    if None not in limits and limits[0] != limits[1]:
        raise _refused("max_tokens", "max_tokens and max_completion_tokens differ; leave max_tokens out")
    limit = limits[0] if limits[0] is not None else limits[1]
    tools = _tools(request)
    ask = Ask(
        choices=request.get("n", 1),
        sampler=_sampler(request, model.sampler_config),
        penalties=_penalties(request, model),
        max_tokens=most_tokens if limit is None else limit,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        best=_best(request),
        tools=tools,
        has_one_call=not request.get("parallel_tool_calls", True),
        is_stream=is_stream,
        has_usage=options.get("include_usage", False),
        is_passing=not is_stream,
        parameters={tool["function"]["name"]: tuple(_properties(tool)) for tool in tools},
    )
    return _with_form(ask, request)


def _refused(param: str, message: str, status: int = 400) -> RefusedError:
    return RefusedError(status, Code.VALIDATION_ERROR, message, param=param)


def _sampler(request: Mapping[str, Any], usual: SamplerConfig) -> SamplerConfig:
    """The bundle's, with what is asked for. Without a seed, another one each time."""
    asked = {name: request[name] for name in ("temperature", "top_p", "top_k") if name in request}
    if usual.top_k == 1 and asked and "top_k" not in asked:
        asked["top_k"] = None  # its default for what draws
    seed = request.get("seed")
    return replace(usual, **asked, seed=secrets.randbits(31) if seed is None else seed)


def _penalties(request: Mapping[str, Any], model: TextModel) -> Penalties:
    repetition = RepetitionPenaltyConfig(
        repetition_penalty=request.get("repetition_penalty"),
        presence_penalty=request.get("presence_penalty"),
        frequency_penalty=request.get("frequency_penalty"),
    )
    bias = {int(token_id): float(value) for token_id, value in request.get("logit_bias", {}).items()}
    unknown = next((token_id for token_id in bias if token_id >= model.tokenizer.size), None)
    if unknown is not None:
        last = model.tokenizer.size - 1
        raise _refused("logit_bias", f"logit_bias has the token {unknown}, the model has 0 to {last}", 422)
    return Penalties(repetition, suppress=model.suppress, bias=bias)


def _best(request: Mapping[str, Any]) -> int | None:
    told, count = request.get("logprobs", False), request.get("top_logprobs")
    if isinstance(told, bool):  # a chat's
        if count is not None and not told:
            raise _refused("top_logprobs", "top_logprobs is given without logprobs; set logprobs")
        return (count or 0) if told else None
    return int(told)


def _tools(request: Mapping[str, Any]) -> tuple[Json, ...]:
    """What is shown to the model. Raises RefusedError: two of one name, a choice of one that is not there."""
    tools = request.get("tools", ())
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _refused("tools", f"two tools are called {twice}, the model could not choose; rename one")
    choice = request.get("tool_choice", "auto")
    if choice == "none":
        return ()
    if choice != "auto" and not tools:
        raise _refused("tool_choice", "tool_choice demands a call, but there are no tools; send some")
    if isinstance(choice, Mapping) and choice["function"]["name"] not in names:
        raise _refused("tool_choice", f"tool_choice names {choice['function']['name']}, which is none of the tools")
    return tuple({"type": "function", "function": _without_none(tool["function"])} for tool in tools)


def _without_none(function: Json) -> Json:
    return {key: value for key, value in function.items() if value is not None and key != "strict"}


def _properties(tool: Json) -> Mapping[str, Any]:
    found: Mapping[str, Any] = tool["function"].get("parameters", {}).get("properties", {})
    return found


def _with_form(ask: Ask, request: Mapping[str, Any]) -> Ask:
    """Also says what form the reply has to have: of a call, or of JSON."""
    choice: str | Mapping[str, Any] = request.get("tool_choice", "auto")
    wanted = _format(request)
    if not ask.tools:
        return replace(ask, format=wanted)
    if wanted is not None:
        raise _refused(
            "response_format", "a reply cannot be in a response_format and call tools; set tool_choice to none"
        )
    if choice == "auto":
        return ask
    name = choice["function"]["name"] if isinstance(choice, Mapping) else None
    shared: dict[str, Any] = {}
    calls = [_call_schema(tool, shared) for tool in ask.tools if name in (None, tool["function"]["name"])]
    schema = {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": shared, **_COMPACT}
    return replace(ask, format=_json_format(schema, "tools", lenient=True), is_forced=True)


def _call_schema(tool: Json, shared: dict[str, Any]) -> dict[str, Any]:
    """shared: gets what the tool's schema refers to, since references begin at the whole schema's root."""
    function = tool["function"]
    closed: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    arguments = closed | dict(function.get("parameters", {}))
    for name, schema in arguments.pop("$defs", {}).items():
        if shared.setdefault(name, schema) != schema:
            raise _refused("tools", f"two tools have another schema in $defs/{name[:60]}; rename one of them")
    properties = {"name": {"const": function["name"]}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _format(request: Mapping[str, Any]) -> ResponseFormat | None:
    wanted = request.get("response_format", {"type": "text"})
    described = wanted.get("json_schema")
    if (described is not None) != (wanted["type"] == "json_schema"):
        what = f"response_format is {wanted['type']}, and json_schema is {'missing' if described is None else 'given'}"
        raise _refused("response_format", f"{what}; give it with type json_schema, and only then", 422)
    if wanted["type"] == "text":
        return None
    if described is None:
        return _json_format({"type": "object"}, "response_format", lenient=False)
    schema = described.get("schema") or {"type": "object"}
    return _json_format(schema, "response_format.json_schema.schema", lenient=described.get("strict") is not True)


def _json_format(schema: Mapping[str, Any], param: str, *, lenient: bool) -> ResponseFormat:
    parts = [part for part in _parts(schema) if isinstance(part, Mapping)]
    references = [part[key] for part in parts for key in _REFERENCES if isinstance(part.get(key), str)]
    if any(not reference.startswith("#") for reference in references):
        raise _refused(param, f'{param}: a "$ref" points outside of the schema; only "#..." is followed')
    words = {key for part in parts for key in part}
    checked = sorted(_CHECKED_AT_THE_END & words)
    if checked and _PATTERNS & words:  # by Python's expressions, some of which take for ever
        raise _refused(param, f"{param}: patterns cannot be checked together with {checked[0]}; leave one out")
    try:
        return ResponseFormat.json(json.dumps(schema), lenient=lenient)
    except GemmaEdgeError as error:
        raise _refused(param, f"{param}: {error}") from error


def _parts(schema: Any) -> Iterator[Any]:
    """A schema and everything in it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
