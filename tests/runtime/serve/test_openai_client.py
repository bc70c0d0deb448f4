"""openai's own client, unmodified."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.runtime.serve.running import MODEL, Running

SAID = "And it came to pass"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: OpenAI) -> None:
    [model] = client.models.list()
    assert model == client.models.retrieve(MODEL)
    assert model.id == MODEL


def test_a_chat_and_its_stream(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": SAID}],
        temperature=0,
        max_completion_tokens=16,
        logprobs=True,
    )
    text = reply.choices[0].message.content
    assert text
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 16
    end = text[-4:]
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": SAID}], temperature=0, max_completion_tokens=16, stop=end
    ) as stream:
        written = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(written) == final.choices[0].message.content == text.partition(end)[0]
    assert final.choices[0].finish_reason == "stop"


def test_a_round_of_tools(client: OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]},
        },
    }
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]
    first: Any = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[tool], tool_choice="required", temperature=0, max_tokens=64
    )
    message = first.choices[0].message
    [call] = message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "clear"})}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[tool], temperature=0, max_tokens=8)
    assert second.choices[0].message.content
    assert second.choices[0].finish_reason in ("stop", "length")


def test_a_reply_may_come_back_as_pydantic_writes_it(client: OpenAI) -> None:
    """With null for everything that the reply had nothing for."""
    messages: list[Any] = [{"role": "user", "content": SAID}]
    said = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=4).choices[0]
    written: Any = said.message.model_dump()
    assert written["function_call"] is None
    plain: Any = {"role": "assistant", "content": said.message.content}
    replies = [
        client.chat.completions.create(
            model=MODEL, messages=[*messages, reply, *messages], temperature=0, max_tokens=4
        ).choices[0]
        for reply in (written, plain)
    ]
    assert replies[0].message == replies[1].message


class Answer(BaseModel):
    kind: bool
    more: bool | None = None


def test_a_parsed_reply(client: OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": SAID}],
        response_format=Answer,
        temperature=0,
        max_tokens=128,
    )
    assert isinstance(reply.choices[0].message.parsed, Answer)


def test_a_completion(client: OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt=SAID, temperature=0, max_tokens=8, logprobs=1)
    streamed = client.completions.create(model=MODEL, prompt=SAID, temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == reply.choices[0].text


def test_errors_are_openais(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": SAID}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": SAID}], extra_body={"mirostat": 2}
        )
    assert (unknown.value.code, unknown.value.param) == ("unsupported_parameter", "mirostat")
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": SAID}], temperature=5)


def test_many_at_once_from_asyncio(server: Running) -> None:
    """Replies are not mixed up."""
    openings = [f"{SAID} number {index}" for index in range(12)]

    async def ask(client: openai.AsyncOpenAI, text: str) -> str | None:
        reply = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=12
        )
        return reply.choices[0].message.content

    async def main() -> tuple[list[str | None], list[str | None]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            together = await asyncio.gather(*(ask(client, text) for text in openings))
            return together, [await ask(client, text) for text in openings]

    together, alone = asyncio.run(main())
    assert together == alone
    assert len(set(alone)) > 1
