"""JSON schemas of all that is sent and received. Requests are checked against them, and OpenAPI shows them.

What a request may not have is refused by name, never left out in silence. Of OpenAI's parameters, those that change
nothing in a reply here are taken and do nothing: they are listed as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

MOST_CHOICES = 8
MOST_STOPS = 16
MOST_BEST = 20
MOST_MESSAGES = 1024
MOST_TOOLS = 128
MOST_PROMPTS = 16


def _object(properties: Schema, required: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """No other keys."""
    found: dict[str, Any] = {"type": "object", "properties": dict(properties), "additionalProperties": False, **more}
    return {**found, "required": list(required)} if required else found


def _told(properties: Schema, required: Sequence[str] | None = None) -> dict[str, Any]:
    """Of a reply: every key is there."""
    return _object(properties, list(properties) if required is None else required)


def _or_null(schema: Schema) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _number(low: float, high: float) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Schema, low: int = 0, high: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low} | ({} if high is None else {"maxItems": high})


def _one_of(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


_TEXT = {"type": "string"}
_BOOLEAN = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_MOST = 1 << 31
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}
_JSON_OBJECT = {"type": "object"}
_TOKEN = _integer(0, _MOST - 1)
_SEED = _integer(-(1 << 63), (1 << 63) - 1)


def _with_note(schema: Schema, note: str) -> dict[str, Any]:
    return {**schema, "description": note}


_NOTHING = "Taken, and changes nothing here."
_PART = _object(
    {
        "type": _one_of("text", "image_url", "input_audio", "refusal"),
        "text": _TEXT,
        "refusal": _TEXT,
        "image_url": _object(
            {
                "url": _with_note(_TEXT, "A data: URL; others are not fetched."),
                "detail": _with_note(_one_of("auto", "low", "high"), _NOTHING),
            },
            ["url"],
        ),
        "input_audio": _object(
            {"data": _with_note(_TEXT, "base64"), "format": _one_of("wav", "mp3", "flac", "ogg")}, ["data"]
        ),
    },
    ["type"],
)
_CALL = _object(
    {
        "id": _TEXT,
        "type": _one_of("function"),
        "index": _COUNT,
        "function": _object({"name": _NAME, "arguments": _with_note(_TEXT, "A JSON object.")}, ["name", "arguments"]),
    },
    ["function"],
)
MESSAGE = _object(
    {
        "role": _one_of("system", "developer", "user", "assistant", "tool"),
        "content": {"anyOf": [_TEXT, _list(_PART, 1, 256), {"type": "null"}]},
        "name": _with_note(_or_null(_NAME), "Of a tool's answer only."),
        "refusal": _or_null(_TEXT),
        "tool_calls": _or_null(_list(_CALL, 0, 64)),
        "tool_call_id": _or_null(_TEXT),
        "annotations": _with_note(_or_null(_list({})), _NOTHING),
    },
    ["role"],
)
_PARAMETERS = {
    "type": "object",
    "properties": {
        "type": _one_of("object"),
        "properties": {"type": "object", "additionalProperties": _JSON_OBJECT},
        "required": _list(_TEXT),
        "$defs": {"type": "object", "additionalProperties": _JSON_OBJECT},
    },
}
_FUNCTION = _object(
    {
        "name": _NAME,
        "description": _or_null(_TEXT),
        "parameters": _with_note(_or_null(_PARAMETERS), "A JSON schema."),
        "strict": _with_note(_or_null(_BOOLEAN), "Arguments keep to their schema where a call is demanded."),
    },
    ["name"],
)
_TOOL = _object({"type": _one_of("function"), "function": _FUNCTION}, ["type", "function"])
_TOOL_CHOICE = {
    "anyOf": [
        _one_of("none", "auto", "required"),
        _object({"type": _one_of("function"), "function": _object({"name": _NAME}, ["name"])}, ["type", "function"]),
    ]
}
_FORMAT = _object(
    {
        "type": _one_of("text", "json_object", "json_schema"),
        "json_schema": _object(
            {
                "name": _TEXT,
                "description": _or_null(_TEXT),
                "schema": _or_null(_JSON_OBJECT),
                "strict": _with_note(_or_null(_BOOLEAN), "true: refuse what cannot be enforced while it is written."),
            },
            ["name"],
        ),
    },
    ["type"],
)
_SAMPLING = {
    "model": _TEXT,
    "stream": _BOOLEAN,
    "stream_options": _object({"include_usage": _BOOLEAN, "include_obfuscation": _one_of(False)}),
    "n": _integer(1, MOST_CHOICES),
    "stop": {"anyOf": [{"type": "string", "minLength": 1}, _list({"type": "string", "minLength": 1}, 0, MOST_STOPS)]},
    "max_tokens": _integer(1, _MOST),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _with_note(_integer(1, 1024), "Beyond OpenAI's: how many of the likeliest tokens are drawn from."),
    "seed": _SEED,
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _with_note(_number(1, 10), "Beyond OpenAI's."),
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": _number(-100, 100),
        "maxProperties": 1024,
    },
    "user": _with_note(_TEXT, _NOTHING),
}
CHAT_REQUEST = _object(
    {
        "messages": _list(MESSAGE, 1, MOST_MESSAGES),
        **_SAMPLING,
        "max_completion_tokens": _integer(1, _MOST),
        "logprobs": _BOOLEAN,
        "top_logprobs": _integer(0, MOST_BEST),
        "tools": _list(_TOOL, 0, MOST_TOOLS),
        "tool_choice": _TOOL_CHOICE,
        "parallel_tool_calls": _BOOLEAN,
        "response_format": _FORMAT,
        "modalities": _list(_one_of("text"), 1, 1),
        "metadata": _with_note(_JSON_OBJECT, _NOTHING),
        "store": _one_of(False),
        "service_tier": _with_note(_one_of("auto", "default"), _NOTHING),
        "prediction": _with_note(_JSON_OBJECT, _NOTHING),
        "prompt_cache_key": _with_note(_TEXT, _NOTHING),
        "safety_identifier": _with_note(_TEXT, _NOTHING),
        "reasoning_effort": _one_of("none"),
    },
    ["messages"],
)
COMPLETION_REQUEST = _object(
    {
        "prompt": {
            "anyOf": [
                _TEXT,
                _list(_TEXT, 1, MOST_PROMPTS),
                _list(_TOKEN, 1),
                _list(_list(_TOKEN, 1), 1, MOST_PROMPTS),
            ]
        },
        **_SAMPLING,
        "logprobs": _integer(0, 5),
        "echo": _one_of(False),
        "best_of": _one_of(1),
        "suffix": _one_of(""),
    },
    ["prompt"],
)
TOKENIZE_REQUEST = _object({"content": _TEXT}, ["content"])
DETOKENIZE_REQUEST = _object({"tokens": _list(_TOKEN, 0, 1 << 20)}, ["tokens"])
_RECORDING = {
    "file": {"type": "string", "format": "binary"},
    "model": _TEXT,
    "response_format": _one_of("json", "text"),
    "temperature": _with_note({"type": "number"}, "0: every reply is the likeliest one."),
    "stream": _one_of("false", False),
}
TRANSCRIPTION_REQUEST = _object(
    {**_RECORDING, "language": _with_note(_TEXT, "A code, de, or a name, German.")}, ["file"]
)
TRANSLATION_REQUEST = _object(_RECORDING, ["file"])

ERROR = _told(
    {
        "error": _told(
            {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)},
        )
    }
)
_BEST = {"token": _TEXT, "logprob": {"type": "number"}, "bytes": _or_null(_list(_integer(0, 255)))}
_LOGPROBS = _or_null(_told({"content": _list(_told({**_BEST, "top_logprobs": _list(_told(_BEST))}))}))
USAGE = _told(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": _told({"cached_tokens": _COUNT}),
    }
)
_FINISH = _one_of("stop", "length", "tool_calls", "content_filter")
_REPLY = {"id": _TEXT, "created": {"type": "integer"}, "model": _TEXT}
CHAT_REPLY = _told(
    {
        **_REPLY,
        "object": _one_of("chat.completion"),
        "choices": _list(
            _told(
                {
                    "index": _COUNT,
                    "message": _object(
                        {
                            "role": _one_of("assistant"),
                            "content": _or_null(_TEXT),
                            "refusal": {"type": "null"},
                            "tool_calls": _list(_CALL, 1),
                        },
                        ["role", "content", "refusal"],
                    ),
                    "logprobs": _LOGPROBS,
                    "finish_reason": _FINISH,
                }
            )
        ),
        "usage": USAGE,
    }
)
COMPLETION_REPLY = _told(
    {
        **_REPLY,
        "object": _one_of("text_completion"),
        "choices": _list(
            _told({"index": _COUNT, "text": _TEXT, "logprobs": _or_null(_JSON_OBJECT), "finish_reason": _FINISH})
        ),
        "usage": USAGE,
    }
)
_MODEL = _told(
    {
        "id": _TEXT,
        "object": _one_of("model"),
        "created": {"type": "integer"},
        "owned_by": _TEXT,
        "context_length": _COUNT,
        "modalities": _list(_TEXT),
    }
)
MODEL = _MODEL
MODELS = _told({"object": _one_of("list"), "data": _list(_MODEL)})
TOKENIZE_REPLY = _told({"tokens": _list(_TOKEN), "count": _COUNT})
DETOKENIZE_REPLY = _told({"content": _TEXT})
TRANSCRIPTION_REPLY = _told({"text": _TEXT})
HEALTH = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": _one_of("healthy", "degraded", "unhealthy")},
}
STATS = _told(
    {
        "object": _one_of("stats"),
        "state": _JSON_OBJECT,
        "performance": _JSON_OBJECT,
        "quality": _JSON_OBJECT,
        "alerts": _list(
            _told(
                {
                    "type": _one_of("error", "performance", "memory", "reliability"),
                    "message": _TEXT,
                    "severity": _one_of("high", "medium", "low"),
                    "timestamp": {"type": "number"},
                }
            )
        ),
    }
)
CALLER_USAGE = _told(
    {
        "object": _one_of("usage"),
        "name": _or_null(_TEXT),
        "requests_last_hour": _COUNT,
        "remaining_requests": _or_null(_COUNT),
        "reset_time": {"type": "number"},
        "tokens_last_hour": _COUNT,
        "remaining_tokens": _or_null(_COUNT),
        "window_s": {"type": "number"},
    }
)
