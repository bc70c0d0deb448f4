"""Six programs written for litert_lm: what each of them gets to see. `litert_lm` is the module that they import."""

import json
from pathlib import Path
from typing import Any

Seen = dict[str, Any]


def chat(litert_lm: Any, engine: Any) -> Seen:
    """Two turns behind a system message."""
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=0.95, temperature=1.0)
    with engine.create_conversation(
        messages=[{"role": "system", "content": "You are a helpful assistant."}],
        sampler_config=greedy,
        max_output_tokens=12,
    ) as conversation:
        first = conversation.send_message("In the beginning")
        second = conversation.send_message({"role": "user", "content": [{"type": "text", "text": "And then?"}]})
        texts = ["".join(item.get("text", "") for item in reply["content"]) for reply in (first, second)]
        return {
            "roles": [first["role"], second["role"]],
            "types": [item["type"] for reply in (first, second) for item in reply["content"]],
            "as text": [str(first) == texts[0], str(second) == texts[1]],
            "first": texts[0],
            "has counted": conversation.token_count > 0,
        }


def multiply(a: int, b: int) -> int:
    """Multiplies two integers.

    Args:
        a: The first integer.
        b: The second integer.
    """
    return a * b


QUESTION = "How much is it?"


def tool_agent(litert_lm: Any, engine: Any) -> Seen:
    """A handler that sees every call and every result, and one that forbids them."""
    log: list[Any] = []

    class Handler(litert_lm.ToolEventHandler):  # type: ignore[misc]  # the module is an argument
        def __init__(self, approves: bool) -> None:
            self._approves = approves

        def approve_tool_call(self, tool_call: dict[str, Any]) -> bool:
            function = tool_call["function"]
            log.append((function["name"], function["arguments"]))
            return self._approves

        def process_tool_response(self, tool_response: Any) -> Any:
            log.append(tool_response)
            return tool_response

    options = {"tools": [multiply], "sampler_config": litert_lm.SamplerConfig(top_k=1), "max_output_tokens": 40}
    handler = Handler(approves=True)
    with engine.create_conversation(tool_event_handler=handler, **options) as conversation:
        tools_are_kept = (conversation.tools, conversation.tool_event_handler) == ([multiply], handler)
        answer = str(conversation.send_message(QUESTION))
    with engine.create_conversation(tool_event_handler=handler, **options) as conversation:
        streamed = "".join(str(chunk) for chunk in conversation.send_message_async(QUESTION))
    with engine.create_conversation(tool_event_handler=Handler(approves=False), **options) as conversation:
        forbidden = conversation.send_message(QUESTION)
    with engine.create_conversation(automatic_tool_calling=False, **options) as conversation:
        asked = conversation.send_message(QUESTION)
        content = [{"type": "tool_response", "name": "multiply", "response": 42}]
        told = str(conversation.send_message({"role": "tool", "content": content}))
    return {
        "answers": [answer, streamed, told],
        "log": log,
        "tools are kept": tools_are_kept,
        "calls": [reply["tool_calls"][0]["function"] for reply in (forbidden, asked)],
    }


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 9}, "name": {"enum": ["Ann", "Bob"]}},
    "required": ["age", "name"],
    "additionalProperties": False,
}


def json_extraction(litert_lm: Any, conversation: Any) -> Seen:
    """A reply that keeps to a schema, one that keeps to a pattern, and formats that are none."""
    found = json.loads(
        str(conversation.send_message("Ann is 3.", response_format=litert_lm.ResponseFormat.json(SCHEMA)))
    )
    number = str(conversation.send_message("Who?", response_format=litert_lm.ResponseFormat.regex("[1-9]{3}")))
    errors = []
    try:
        litert_lm.ResponseFormat.json("{not json")
    except ValueError:
        errors.append("no JSON")
    return {
        "keys": sorted(found),
        "fits": found["age"] in range(1, 10) and found["name"] in ("Ann", "Bob"),
        "three digits": len(number) == 3 and number.isdigit(),
        "errors": errors,
    }


def scoring(litert_lm: Any, engine: Any) -> Seen:
    """Which of two continuations a model finds likelier, token by token."""
    scores, lengths, kinds = {}, [], set()
    for target in ("God", "the heaven and the earth"):
        with engine.create_session(apply_prompt_template=False) as session:
            session.run_prefill(["In the beginning ", "was "])
            responses = session.run_text_scoring([target], store_token_lengths=True)
            scores[target] = [round(score, 3) for score in responses.token_scores[0]]
            lengths.append(responses.token_lengths[0])
            kinds |= {isinstance(responses, litert_lm.Responses), responses.texts == [target], len(responses.scores)}
    return {"scores": scores, "lengths": lengths, "kinds": kinds}


def streaming_handler(litert_lm: Any, engine: Any) -> Seen:
    """Chunks as they are written, from conversations and sessions, and a stream that is cut short."""
    options = {"sampler_config": litert_lm.SamplerConfig(top_k=1), "max_output_tokens": 16}
    pieces, roles = [], set()
    with engine.create_conversation(**options) as conversation:
        for chunk in conversation.send_message_async({"role": "user", "content": "In the beginning"}):
            roles.add(chunk["role"])
            pieces += [item["text"] for item in chunk.get("content", []) if item.get("type") == "text"]
        info = conversation.get_benchmark_info()
    with engine.create_session(**options) as session:
        session.run_prefill(["In the beginning"])
        texts = [text for responses in session.run_decode_async() for text in responses.texts]
    with engine.create_conversation(**options) as conversation:
        shorter = [str(chunk) for chunk in conversation.send_message_async("In the beginning", max_output_tokens=3)]
    return {
        "text": "".join(pieces),
        "roles": roles,
        "session": "".join(texts),
        "is in pieces": len(pieces) > 3 and len(texts) > 3,
        "shorter": "".join(pieces).startswith("".join(shorter)) and len(shorter) <= 3,
        "counted": (info.last_prefill_token_count > 0, info.last_decode_token_count > 0),
    }


def image_question(litert_lm: Any, engine: Any, picture: Path) -> Seen:
    """A file, bytes, and an image between texts."""
    greedy = litert_lm.SamplerConfig(top_k=1)
    content = litert_lm.Content
    questions = [
        litert_lm.Contents.of(content.ImageFile(str(picture)), "What is this?"),
        litert_lm.Contents.of("Look:", content.ImageBytes(picture.read_bytes()), "Well?"),
        {
            "role": "user",
            "content": [{"type": "image", "path": str(picture)}, {"type": "text", "text": "What is this?"}],
        },
    ]
    replies = []
    for question in questions:
        with engine.create_conversation(sampler_config=greedy, max_output_tokens=12) as conversation:
            replies.append(str(conversation.send_message(question)))
    return {"replies": replies}
