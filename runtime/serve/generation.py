"""/v1/chat/completions and /v1/completions: from a body to a reply, whole or as a stream."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from gemma_edge.runtime.chat.message_json import Json
from gemma_edge.runtime.serve.api import schemas
from gemma_edge.runtime.serve.api.answers import Answer, ChatAnswer, CompletionAnswer
from gemma_edge.runtime.serve.api.ask import Ask, read_ask
from gemma_edge.runtime.serve.api.check import Checker, parsed
from gemma_edge.runtime.serve.api.messages import read_messages
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.exchange import Exchange
from gemma_edge.runtime.serve.hooks import Guard
from gemma_edge.runtime.serve.prompts import Prepared
from gemma_edge.runtime.serve.service import Record, Service, check_model

_CHAT = Checker(schemas.CHAT_REQUEST)
_COMPLETION = Checker(schemas.COMPLETION_REQUEST)


async def chat(service: Service, exchange: Exchange, record: Record) -> None:
    """Answers /v1/chat/completions."""
    request = _CHAT.checked(parsed(await exchange.body(), service.settings.json_depth))
    check_model(request, service.settings)
    ask = read_ask(request, service.engine.text_model, service.settings.max_output_tokens)
    model, tokenizer = service.settings.model_id, service.engine.text_model.tokenizer
    answer = ChatAnswer(model, tokenizer, ask.choices, has_scores=ask.best is not None)
    record.id, record.is_stream = answer.id, ask.is_stream
    reads_results = service.engine.text_model.reads_results
    messages: Sequence[Json] = read_messages(
        request["messages"], service.settings.media_bytes, reads_results=reads_results
    )
    record.prompt_text = next((_text(m) for m in reversed(messages) if m["role"] == "user"), "")
    if service.guard is not None:
        _check_scores(ask, service.guard)
        service.guard.check_tools(record.caller, record.id, ask.tools)
        messages = service.guard.check_input(record.caller, record.id, messages)
    prepared = await service.prepare(lambda prompter: prompter.chat(messages, ask.tools, ask.max_tokens))
    headers = {"x-dropped-messages": str(prepared.dropped)} if prepared.dropped else {}
    await _answer(service, exchange, record, ask, [prepared], answer, headers)


async def completion(service: Service, exchange: Exchange, record: Record) -> None:
    """Answers /v1/completions."""
    request = _COMPLETION.checked(parsed(await exchange.body(), service.settings.json_depth))
    check_model(request, service.settings)
    ask = read_ask(request, service.engine.text_model, service.settings.max_output_tokens)
    prompts = _prompts(request["prompt"])
    model, tokenizer = service.settings.model_id, service.engine.text_model.tokenizer
    answer = CompletionAnswer(model, tokenizer, ask.choices * len(prompts), has_scores=ask.best is not None)
    record.id, record.is_stream = answer.id, ask.is_stream
    made = await service.prepare(lambda prompter: [prompter.text(prompt) for prompt in prompts])
    if service.guard is not None:
        _check_scores(ask, service.guard)
        texts = [p if isinstance(p, str) else tokenizer.decode(p) for p in prompts]
        said = service.guard.check_input(
            record.caller, record.id, [{"role": "user", "content": text} for text in texts]
        )
        cleaned = [_text(message) for message in said]
        if cleaned != texts:
            made = await service.prepare(lambda prompter: [prompter.text(text) for text in cleaned])
        record.prompt_text = "\n".join(cleaned)
    await _answer(service, exchange, record, ask, made, answer, {})


def _check_scores(ask: Ask, guard: Guard) -> None:
    """Log probabilities tell every token, those too that the guard takes out of a reply."""
    if ask.best is not None and guard.filters_replies:
        message = "log probabilities are not told where a content policy filters replies; leave logprobs out"
        raise RefusedError(400, Code.UNSUPPORTED_PARAMETER, message, param="logprobs")


def _prompts(prompt: Any) -> list[str | list[int]]:
    """Of a text, tokens, or a list of either."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _text(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


async def _answer(
    service: Service,
    exchange: Exchange,
    record: Record,
    ask: Ask,
    prompts: Sequence[Prepared],
    answer: Answer,
    headers: dict[str, str],
) -> None:
    if ask.is_stream:
        await exchange.while_there(_streamed(service, exchange, record, ask, prompts, answer, headers))
        return
    found = []

    async def gather() -> None:
        async with aclosing(service.pieces(ask, prompts, record)) as pieces:
            async for piece in pieces:
                found.append(piece)
                _note(record, piece.choice, piece.text, piece.finish)

    await exchange.while_there(gather())
    await exchange.json(200, answer.whole(found, record.totals), headers)


async def _streamed(
    service: Service,
    exchange: Exchange,
    record: Record,
    ask: Ask,
    prompts: Sequence[Prepared],
    answer: Answer,
    headers: dict[str, str],
) -> None:
    """The status is told with the first piece, so that what goes wrong before has its own."""
    try:
        async with aclosing(service.pieces(ask, prompts, record)) as pieces:
            async for piece in pieces:
                if not exchange.status:
                    await exchange.events(headers)
                _note(record, piece.choice, piece.text, piece.finish)
                for chunk in answer.chunks(piece):
                    await exchange.event({**chunk, "usage": None} if ask.has_usage else chunk)
    except RefusedError as refusal:
        if not exchange.status:
            raise
        record.error = refusal.code
        await exchange.event(refusal.to_json())
        await exchange.end()
        return
    if ask.has_usage:
        await exchange.event(answer.usage(record.totals))
    await exchange.event("[DONE]")
    await exchange.end()


def _note(record: Record, choice: int, text: str, finish: str | None) -> None:
    """Of the first choice, for the record."""
    if finish == "content_filter":
        record.error = Code.RESPONSE_FILTERED
    if choice == 0:
        record.reply_text += text
        record.finish = finish or record.finish
