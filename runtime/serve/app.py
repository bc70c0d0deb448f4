"""The routes, as an ASGI application to be served or mounted."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeAlias

from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.serve.api import schemas
from gemma_edge.runtime.serve.api.check import Checker, parsed
from gemma_edge.runtime.serve.api.document import document
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.events import Kind
from gemma_edge.runtime.serve.exchange import ClientLeftError, Exchange
from gemma_edge.runtime.serve.generation import chat, completion
from gemma_edge.runtime.serve.guard import guard as guards
from gemma_edge.runtime.serve.guard.policy import Direction
from gemma_edge.runtime.serve.hooks import Caller, Guard, Monitor
from gemma_edge.runtime.serve.monitor import monitor as monitors
from gemma_edge.runtime.serve.monitor.webhook import Webhook
from gemma_edge.runtime.serve.recordings import transcription, translation
from gemma_edge.runtime.serve.service import Record, Service, refused
from gemma_edge.runtime.serve.settings import Settings

_log = logging.getLogger(__name__)

Work: TypeAlias = Callable[[Service, Exchange, Record], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health"})
"""What is shown without a key: it tells nothing of anybody's requests."""
_TOKENIZE = Checker(schemas.TOKENIZE_REQUEST)
_DETOKENIZE = Checker(schemas.DETOKENIZE_REQUEST)


def create_app(
    engine: Engine, settings: Settings, *, guard: Guard | None = None, monitor: Monitor | None = None
) -> Starlette:
    """An application that answers with this engine, which stays the caller's to close.

    guard, monitor: None for those that the settings ask for. From now on the engine knows chats by their tokens
    (`Engine.keep_chats`). Served by itself, the application saves them at its end; where it is mounted in another one,
    `app.state.service.close()` is to be awaited there.
    """
    guard = guard or made_guard(settings)
    monitor = monitor or made_monitor(settings, guard)
    service = Service(engine, settings, guard, monitor)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await service.close()

    routes = [
        _generates("/v1/chat/completions", chat, Kind.CHAT, service),
        _generates("/v1/completions", completion, Kind.COMPLETION, service),
        _generates("/v1/audio/transcriptions", transcription, Kind.TRANSCRIPTION, service),
        _generates("/v1/audio/translations", translation, Kind.TRANSLATION, service),
        Route("/v1/models", _models(service), methods=["GET"]),
        Route("/v1/models/{model:path}", _model(service), methods=["GET"]),
        Route("/tokenize", _Small(service, _tokenize), methods=["POST"]),
        Route("/detokenize", _Small(service, _detokenize), methods=["POST"]),
        Route("/health", _health(service), methods=["GET"]),
        Route("/openapi.json", _openapi(service), methods=["GET"]),
        *monitor.routes(service.state),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
    app.state.service = service
    app.add_middleware(_Door, service=service)
    if settings.cors_origins:  # before the door: a browser asks what it may send without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Api-Key"],
            expose_headers=["Retry-After", "X-Dropped-Messages"],
        )
    return app


def made_guard(settings: Settings) -> Guard | None:
    """Of the files of keys and policy; None where there is neither. Raises KeyFileError, PolicyError."""
    return guards.Guard.of_files(settings.api_key_file, settings.policy_file)


def made_monitor(settings: Settings, guard: Guard | None) -> Monitor:
    """With the rules of the guard's policy, by which replies are scored. Raises WebhookError."""
    ours = guard if isinstance(guard, guards.Guard) else None
    return monitors.Monitor(
        settings.model_id,
        thresholds=settings.thresholds,
        rules=() if ours is None else ours.policy.rules.get(Direction.OUTPUT, ()),
        tell=None if settings.webhook is None else Webhook(settings.webhook, settings.model_id),
        usage=None if ours is None else ours.usage_json,
        has_metrics=settings.metrics,
        needs_key=guard is not None and guard.needs_key,
    )


class _Door:
    """Asks who comes in, and answers what nobody expected."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._service.settings, self._service.bodies)
        caller = Caller()
        if self._service.guard is not None and get_route_path(scope) not in OPEN_PATHS:
            try:
                caller = self._service.guard.authorise(exchange.headers)
            except RefusedError as refusal:
                await exchange.refuse(refusal)
                return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


class _Generates:
    """An endpoint whose requests are reported, answered or not."""

    def __init__(self, work: Work, kind: Kind, service: Service) -> None:
        self._work, self._kind, self._service = work, kind, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with Exchange(scope, receive, send, self._service.settings, self._service.bodies) as exchange:
            record = Record(self._kind, exchange.caller)
            status = 500
            try:
                status = await self._answered(exchange, record)
            finally:
                self._service.finished(record, status)

    async def _answered(self, exchange: Exchange, record: Record) -> int:
        """The status. What a program of ours did wrong is logged, and told as that."""
        try:
            await self._work(self._service, exchange, record)
        except ClientLeftError:
            record.error = Code.CANCELLED
            return 499
        except GemmaEdgeError as error:
            refusal = refused(error)
        except Exception:
            _log.exception("a request of %s failed", self._kind.value)
            refusal = RefusedError(500, Code.GENERATION_ERROR, "the server failed; its log says why")
        else:
            return exchange.status
        record.error = refusal.code
        if not exchange.status:
            await exchange.refuse(refusal)
        return refusal.status


def _generates(path: str, work: Work, kind: Kind, service: Service) -> Route:
    return Route(path, _Generates(work, kind, service), methods=["POST"])


class _Small:
    """An endpoint that takes JSON and answers at once."""

    def __init__(self, service: Service, work: Callable[[Service, bytes], Awaitable[Any]]) -> None:
        self._service, self._work = service, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with Exchange(scope, receive, send, self._service.settings, self._service.bodies) as exchange:
            try:
                await exchange.json(200, await self._work(self._service, await exchange.body()))
            except ClientLeftError:
                return
            except GemmaEdgeError as error:
                await exchange.refuse(refused(error))


async def _tokenize(service: Service, body: bytes) -> Mapping[str, Any]:
    content = _TOKENIZE.checked(parsed(body, service.settings.json_depth))["content"]
    tokens = await service.prepare(lambda prompter: prompter.tokenized(content))
    return {"tokens": tokens, "count": len(tokens)}


async def _detokenize(service: Service, body: bytes) -> Mapping[str, Any]:
    tokens = _DETOKENIZE.checked(parsed(body, service.settings.json_depth))["tokens"]
    return {"content": await service.prepare(lambda _: service.engine.detokenize(tokens))}


def _models(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_described(service)]})

    return models


def _model(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def model(request: Request) -> Response:
        wanted, found = request.path_params["model"], service.settings.model_id
        if wanted != found:
            message = f"there is no model {wanted[:60]!r}, this server has {found}"
            refusal = RefusedError(404, Code.MODEL_NOT_FOUND, message, param="model")
            return JSONResponse(refusal.to_json(), refusal.status)
        return JSONResponse(_described(service))

    return model


def _described(service: Service) -> Mapping[str, Any]:
    engine = service.engine
    return {
        "id": service.settings.model_id,
        "object": "model",
        "created": int(service.started_at),
        "owned_by": "gemma-edge",
        "context_length": engine.max_num_tokens,
        "modalities": ["text", *engine.media.kinds],
    }


def _health(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def health(_request: Request) -> Response:
        probe = await service.probe()
        found = service.monitor.health(probe)
        return JSONResponse(dict(found), 503 if found["status"] == "unhealthy" else 200)

    return health


def _openapi(service: Service) -> Callable[[Request], Awaitable[Response]]:
    guard = service.guard
    needs_key, has_usage = guard is not None and guard.needs_key, isinstance(guard, guards.Guard)
    found = document(service.settings.model_id, version("gemma-edge"), has_keys=needs_key, has_usage=has_usage)

    async def openapi(_request: Request) -> Response:
        return JSONResponse(found)

    return openapi


async def _http_error(_request: Request, error: Exception) -> Response:
    """What Starlette refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    code = Code.METHOD_NOT_ALLOWED if error.status_code == 405 else Code.NOT_FOUND
    refusal = RefusedError(error.status_code, code, f"{error.detail}; GET /openapi.json says what there is")
    return JSONResponse(refusal.to_json(), error.status_code, {**(error.headers or {}), **refusal.headers})
