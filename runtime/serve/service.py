"""What stands behind the routes: one engine, who may run, and what is reported of it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gemma_edge.profiles.budget import OverBudget
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import ClosedError, ContextOverflowError, ExecutorError
from gemma_edge.runtime.executors.litert.weight_cache import cache_opened
from gemma_edge.runtime.kv.scheduler import QueueFullError
from gemma_edge.runtime.memory.reading import read_memory
from gemma_edge.runtime.serve.admission import Admission, Bodies
from gemma_edge.runtime.serve.api.ask import Ask
from gemma_edge.runtime.serve.choices import Choice, Piece, Totals, written
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.events import Finished, Kind, Probe, State
from gemma_edge.runtime.serve.hooks import Caller, Guard, Monitor
from gemma_edge.runtime.serve.prompts import Prepared, Prompter
from gemma_edge.runtime.serve.settings import Settings
from gemma_edge.runtime.text.constraints import Constraint

Value = TypeVar("Value")

_BODIES_SHARE = 16  # of a budget: one part of so many


@dataclass
class Record:
    """What is known of a request until it ends."""

    kind: Kind
    caller: Caller
    id: str = ""
    is_stream: bool = False
    started_at: float = field(default_factory=time.time)
    arrived: float = field(default_factory=time.monotonic)
    wait_s: float = 0.0
    totals: Totals = field(default_factory=Totals)
    finish: str | None = None
    error: Code | None = None
    prompt_text: str = ""
    reply_text: str = ""


class Service:
    """For one event loop. guard: None where everybody may ask everything."""

    def __init__(self, engine: Engine, settings: Settings, guard: Guard | None, monitor: Monitor) -> None:
        self.engine, self.settings = engine, settings
        self.guard, self.monitor = guard, monitor
        self.prompter = Prompter(engine, settings)
        self.started_at = time.time()
        active = min(settings.active or engine.slots, engine.slots)
        spare = engine.spare_bytes  # half of it for rows of requests that run, half for those that may come again
        rows_bytes = settings.rows_bytes if spare is None else min(settings.rows_bytes, spare // 2)
        self.admission = Admission(active, settings.waiting, settings.wait_s, rows_bytes)
        most = settings.bodies_bytes
        if engine.profile is not None:
            most = min(most, max(settings.body_bytes, engine.profile.budget_bytes // _BODIES_SHARE))
        self.bodies = Bodies(most)
        self._active = active
        self._threads = ThreadPoolExecutor(1, "gemma-edge prompts")
        self._idle: asyncio.TimerHandle | None = None
        self._saving: asyncio.Future[None] | None = None
        self._probing: asyncio.Future[Probe] | None = None
        self._cache = ExitStack()
        chats = None
        if settings.cache_dir is not None:
            folder = self._cache.enter_context(cache_opened(settings.cache_dir))
            chats = folder.own("chats") or folder.anchor / "chats"
        engine.media.keep(rows_bytes)
        engine.keep_chats(chats, settings.saved_bytes)

    async def prepare(self, work: Callable[[Prompter], Value]) -> Value:
        """What takes a moment before a request can run, in a thread of its own. Raises RefusedError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, self.prompter)
        except GemmaEdgeError as error:
            raise refused(error) from error

    async def pieces(self, ask: Ask, prompts: Sequence[Prepared], record: Record) -> AsyncGenerator[Piece, None]:
        """The reply to each prompt, `ask.choices` of each, as they are written.

        They are written as fast as the model can, however slowly they are read. Raises RefusedError.
        """
        guard, caller, totals = self.guard, record.caller, record.totals
        choices = await self._choices(ask, prompts, record)
        if guard is not None:
            guard.admit(caller, record.id, self._most_tokens(ask, prompts))
        before = totals.prompt_tokens + totals.generated_tokens  # of earlier windows of a recording
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        work = asyncio.ensure_future(self._write(ask, choices, prompts, record, queue))
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        except GemmaEdgeError as error:
            raise refused(error) from error
        finally:
            work.cancel()
            await asyncio.wait({work})
            if guard is not None:
                guard.settle(caller, record.id, totals.prompt_tokens + totals.generated_tokens - before)

    async def _choices(self, ask: Ask, prompts: Sequence[Prepared], record: Record) -> list[Choice]:
        model, guard = self.engine.text_model, self.guard
        wanted, count = ask.format, ask.choices * len(prompts)
        constraints: list[Constraint | None] = [None] * count
        if wanted is not None:  # a schema takes a moment
            constraints = await self.prepare(lambda _: [model.constraint(wanted) for _ in range(count)])
        return [
            Choice(
                prompts[index // ask.choices].prompt,
                ask.sampler_of(index % ask.choices),
                constraint,
                guard.reply_filter(record.caller, record.id) if guard is not None and guard.filters_replies else None,
            )
            for index, constraint in enumerate(constraints)
        ]

    def _most_tokens(self, ask: Ask, prompts: Sequence[Prepared]) -> int:
        context = self.engine.max_num_tokens
        most = sum(min(context, one.tokens + (ask.max_tokens or context)) for one in prompts)
        return most * ask.choices

    async def _write(
        self,
        ask: Ask,
        choices: Sequence[Choice],
        prompts: Sequence[Prepared],
        record: Record,
        queue: "asyncio.Queue[Piece | BaseException | None]",
    ) -> None:
        rows_bytes = sum(one.media_tokens for one in prompts) * self.engine.embedding_bytes
        arrived = time.monotonic()
        try:
            self._not_idle()
            async with self.admission.turn(rows_bytes):
                record.wait_s += time.monotonic() - arrived
                async with aclosing(written(self.engine, ask, choices, record.totals)) as pieces:
                    async for piece in pieces:
                        queue.put_nowait(piece)
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)
        finally:
            self._maybe_idle()

    def finished(self, record: Record, status: int) -> None:
        """Report a request that has ended."""
        totals, now = record.totals, time.monotonic()
        first = totals.first_token_at
        self.monitor.finished(
            Finished(
                id=record.id,
                kind=record.kind,
                model=self.settings.model_id,
                started_at=record.started_at,
                caller=record.caller.id,
                status=status,
                is_stream=record.is_stream,
                finish_reason=record.finish,
                error_code=record.error,
                prompt_tokens=totals.prompt_tokens,
                cached_tokens=totals.cached_tokens,
                generated_tokens=totals.generated_tokens,
                drafted_tokens=totals.drafted_tokens,
                accepted_tokens=totals.accepted_tokens,
                forced_tokens=totals.forced_tokens,
                batched_tokens=totals.batched_tokens,
                wait_s=record.wait_s,
                first_token_s=0.0 if first is None else first - record.arrived,
                token_s=tuple(totals.token_s),
                total_s=now - record.arrived,
                hard_bytes=read_memory().hard_bytes,
                prompt_text=record.prompt_text,
                reply_text=record.reply_text,
            )
        )

    def state(self) -> State:
        """The server now. To be called in a thread: it reads how much of each mapped file is in memory."""
        memory = self.engine.memory()
        profile = self.engine.profile
        return State(
            model=self.settings.model_id,
            started_at=self.started_at,
            active=self.admission.active,
            waiting=self.admission.waiting,
            most_active=self._active,
            most_waiting=self.settings.waiting,
            context_tokens=self.engine.max_num_tokens,
            kv_bytes=memory.kv_cache_bytes,
            snapshot_bytes=memory.snapshot_bytes,
            hard_bytes=memory.process.hard_bytes,
            file_bytes=memory.process.file_bytes,
            budget_bytes=None if profile is None else profile.budget_bytes,
            is_stopping=self.admission.is_stopping,
        )

    async def probe(self) -> Probe:
        """Run one token between two steps of whatever is being written.

        Who asks while one is run gets its answer too: nobody needs a key to ask, and each token takes its time from
        the replies.
        """
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().run_in_executor(None, self._probed)
        return await asyncio.shield(self._probing)

    def _probed(self) -> Probe:
        started = time.monotonic()
        error = None
        try:
            self.engine.health()
        except GemmaEdgeError as found:
            error = str(found)
        response_s = time.monotonic() - started
        return Probe(state=self.state(), response_s=response_s, error=error)

    def stop(self) -> None:
        """Admit nobody any more. May be called before `close`, so that replies come to their end."""
        self.admission.stop()

    async def close(self) -> None:
        """Save the chats. The engine stays open."""
        self.stop()
        self._not_idle()
        if self._saving is not None:
            await asyncio.wait({self._saving})
        if self.settings.cache_dir is not None:
            with suppress(ClosedError):
                await asyncio.get_running_loop().run_in_executor(None, self.engine.save_chats)
        self._threads.shutdown(wait=False)
        self._cache.close()

    def _not_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _maybe_idle(self) -> None:
        if self.settings.cache_dir is not None and not self.admission.active and not self.admission.waiting:
            self._not_idle()
            self._idle = asyncio.get_running_loop().call_later(self.settings.idle_save_s, self._save)

    def _save(self) -> None:
        self._saving = asyncio.get_running_loop().run_in_executor(None, self.engine.save_chats)


def check_model(request: Mapping[str, Any], settings: Settings) -> None:
    """Raises RefusedError: it names another model. A client that names none means the one there is."""
    wanted, found = request.get("model"), settings.model_id
    if wanted not in (None, found):
        message = f"there is no model {wanted[:60]!r}, this server has {found}; GET /v1/models lists it"
        raise RefusedError(404, Code.MODEL_NOT_FOUND, message, param="model")


def refused(error: GemmaEdgeError) -> RefusedError:
    """What a client is told of an error of ours."""
    match error:
        case RefusedError():
            return error
        case OverBudget():
            return RefusedError(503, Code.OVER_BUDGET, str(error), retry_after_s=10)
        case ContextOverflowError():
            return RefusedError(400, Code.CONTEXT_LENGTH_EXCEEDED, str(error), param="messages")
        case QueueFullError():
            return RefusedError(429, Code.QUEUE_FULL, str(error), retry_after_s=1)
        case ClosedError():
            return RefusedError(503, Code.SHUTTING_DOWN, "the server is being stopped", retry_after_s=10)
        case ExecutorError():
            return RefusedError(500, Code.GENERATION_ERROR, str(error))
    return RefusedError(400, Code.VALIDATION_ERROR, str(error))
