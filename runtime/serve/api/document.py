"""The OpenAPI document, made of the schemas that requests are checked against."""

from collections.abc import Mapping
from typing import Any

from gemma_edge.runtime.serve.api import schemas

Json = dict[str, Any]

_NAMES = {
    "ChatRequest": schemas.CHAT_REQUEST,
    "ChatReply": schemas.CHAT_REPLY,
    "CompletionRequest": schemas.COMPLETION_REQUEST,
    "CompletionReply": schemas.COMPLETION_REPLY,
    "TokenizeRequest": schemas.TOKENIZE_REQUEST,
    "TokenizeReply": schemas.TOKENIZE_REPLY,
    "DetokenizeRequest": schemas.DETOKENIZE_REQUEST,
    "DetokenizeReply": schemas.DETOKENIZE_REPLY,
    "TranscriptionRequest": schemas.TRANSCRIPTION_REQUEST,
    "TranslationRequest": schemas.TRANSLATION_REQUEST,
    "TranscriptionReply": schemas.TRANSCRIPTION_REPLY,
    "Models": schemas.MODELS,
    "Model": schemas.MODEL,
    "Health": schemas.HEALTH,
    "Stats": schemas.STATS,
    "CallerUsage": schemas.CALLER_USAGE,
    "Error": schemas.ERROR,
}
_REFUSALS = {
    "400": "Not readable, not supported, or too long for the context.",
    "401": "No key, or one that is not known.",
    "404": "No such model.",
    "405": "No such method.",
    "408": "The request took too long to arrive.",
    "413": "Too large, or more images than there is memory for.",
    "422": "A parameter has a type or a value that it may not have.",
    "429": "The caller's limit, or the queue, is full; Retry-After says when to come back.",
    "500": "The model failed.",
    "503": "No turn came in time, memory ran out, or the server stops; Retry-After says when to come back.",
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(media_type: str, name: str) -> Json:
    return {media_type: {"schema": _ref(name)}}


def _operation(name: str, summary: str, answers: Mapping[str, Any], request: Json | None = None) -> Json:
    refusals = {
        status: {"description": text, "content": _content("application/json", "Error")}
        for status, text in _REFUSALS.items()
    }
    replies = {"200": {"description": "The reply.", "content": dict(answers)}}
    found: Json = {"operationId": name, "summary": summary, "responses": {**replies, **refusals}}
    return {**found, "requestBody": {"required": True, "content": request}} if request is not None else found


_STREAM: Json = {"text/event-stream": {}}  # OpenAPI 3.1 has no word for the schema of an event


def document(model: str, version: str, *, has_keys: bool, has_usage: bool) -> Json:
    """OpenAPI 3.1. has_keys: whether a key is asked for. has_usage: whether callers have limits."""
    json = "application/json"
    form = "multipart/form-data"
    text = {"text/plain": {"schema": {"type": "string"}}}
    paths: dict[str, Json] = {
        "/v1/chat/completions": {
            "post": _operation(
                "createChatCompletion",
                "The reply to a chat.",
                {**_content(json, "ChatReply"), **_STREAM},
                _content(json, "ChatRequest"),
            )
        },
        "/v1/completions": {
            "post": _operation(
                "createCompletion",
                "How a text goes on.",
                {**_content(json, "CompletionReply"), **_STREAM},
                _content(json, "CompletionRequest"),
            )
        },
        "/v1/audio/transcriptions": {
            "post": _operation(
                "createTranscription",
                "What is said in a recording.",
                {**_content(json, "TranscriptionReply"), **text},
                _content(form, "TranscriptionRequest"),
            )
        },
        "/v1/audio/translations": {
            "post": _operation(
                "createTranslation",
                "What is said in a recording, in English.",
                {**_content(json, "TranscriptionReply"), **text},
                _content(form, "TranslationRequest"),
            )
        },
        "/v1/models": {"get": _operation("listModels", "The model there is.", _content(json, "Models"))},
        "/v1/models/{model}": {
            "get": _operation("getModel", "What is known of it.", _content(json, "Model")),
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
        },
        "/tokenize": {
            "post": _operation(
                "tokenize", "Tokens of a text.", _content(json, "TokenizeReply"), _content(json, "TokenizeRequest")
            )
        },
        "/detokenize": {
            "post": _operation(
                "detokenize",
                "The text of tokens.",
                _content(json, "DetokenizeReply"),
                _content(json, "DetokenizeRequest"),
            )
        },
        "/health": {"get": _health()},
        "/v1/stats": {"get": _operation("stats", "The server in figures.", _content(json, "Stats"))},
    }
    if has_usage:
        usage = _operation("usage", "What the caller used of its limits.", _content(json, "CallerUsage"))
        paths["/v1/usage"] = {"get": usage}
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": f"{model} on gemma-edge", "version": version},
        "paths": paths,
        "components": {"schemas": {name: _for_model(schema, model) for name, schema in _NAMES.items()}},
    }
    if has_keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        paths["/health"]["get"]["security"] = []
    return found


def _for_model(schema: schemas.Schema, model: str) -> Json:
    """Of a request, with the one model that it may name."""
    properties = schema.get("properties", {})
    if "file" in properties or "prompt" in properties or "messages" in properties:
        return {**schema, "properties": {**properties, "model": {"enum": [model]}}}
    return dict(schema)


def _health() -> Json:
    reply = {"content": _content("application/json", "Health")}
    return {
        "operationId": "health",
        "summary": "Whether the server can answer: one token is run.",
        "responses": {
            "200": {"description": "Healthy or degraded.", **reply},
            "503": {"description": "Unhealthy.", **reply},
            "405": {"description": _REFUSALS["405"], "content": _content("application/json", "Error")},
        },
    }
