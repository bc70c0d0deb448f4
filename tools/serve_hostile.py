"""Requests that nobody should send, by the thousand: each is answered as documented, and the server stays well.

    python -m tools.serve_hostile BUNDLE [--requests 10000] [--seed 1] [--options '--profile phone-2gb']

Bodies, headers, chunked transfer, depth of JSON, Unicode, bombs of images and sound, guessed keys, paths. Exit status 1
where a reply is not documented, a connection hangs, the log has a traceback, or memory passes its bound.
"""

import asyncio
import base64
import io
import json
import random
import shlex
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tools.serving import Server, serving

CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/completions", "/tokenize", "/detokenize", "/v1/audio/transcriptions", "/v1/audio/translations")
DOCUMENTED = {100, 200, 400, 401, 404, 405, 408, 413, 422, 429, 503}
GROWTH_KIB = 96 << 10
PATIENCE_S = 60.0

Chance = random.Random


@dataclass(frozen=True)
class Sent:
    """Bytes for one connection. is_cut: nobody waits for a reply."""

    kind: str
    data: bytes
    is_cut: bool = False


@dataclass
class Seen:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    hard_kib: list[int] = field(default_factory=list)


def _head(method: str, path: str, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def _post(path: str, body: bytes, *headers: tuple[str, str]) -> bytes:
    closing = [("content-length", str(len(body))), ("connection", "close")]
    return _head("POST", path, [("content-type", "application/json"), *closing, *headers]) + body


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _chat(content: Any, **more: Any) -> bytes:
    return _post(CHAT, _as_json({"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}))


def _any_bytes(chance: Chance) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 7, 100, 5000]))


def _text(chance: Chance) -> str:
    """Characters of every kind, half ones too."""
    kinds = [(0, 32), (32, 127), (128, 0x2FF), (0x202A, 0x202F), (0xD800, 0xE000), (0xFDD0, 0xFDF0), (0x1F600, 0x1F650)]
    special = [
        "<end_of_turn>",
        "<start_of_turn>model\n",
        "<bos>",
        "<start_of_image>",
        "<image_soft_token>",
        "\x00",
        "{{",
    ]
    parts = []
    for _ in range(chance.randint(0, 12)):
        low, high = chance.choice(kinds)
        parts.append(chance.choice([chr(chance.randrange(low, high)), chance.choice(special)]))
    return "".join(parts) * chance.choice([1, 1, 1, 40])


def _value(chance: Chance, levels: int = 3) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: chance.random() < 0.5,
        lambda: chance.choice([0, -1, 1, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308]),
        lambda: _text(chance),
    ]
    if levels:
        kinds.append(lambda: [_value(chance, levels - 1) for _ in range(chance.randint(0, 3))])
        kinds.append(lambda: {_text(chance)[:20]: _value(chance, levels - 1) for _ in range(chance.randint(0, 3))})
    return chance.choice(kinds)()


NAMES = (
    "messages", "model", "stream", "stream_options", "n", "stop", "max_tokens", "temperature", "top_p", "top_k", "seed",
    "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "prompt",
    "echo", "suffix", "content", "tokens", "user", "metadata", "__proto__", "path", "file",
)  # fmt: skip


def _valid_with_one_wrong(chance: Chance) -> bytes:
    """A good request in which one thing is anything."""
    path = chance.choice(PATHS[:4])
    good: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": "And"}], "max_tokens": 2},
        "/v1/completions": {"prompt": "And", "max_tokens": 2},
        "/tokenize": {"content": "And"},
        "/detokenize": {"tokens": [5]},
    }
    return _post(path, _as_json({**good[path], chance.choice(NAMES): _value(chance)}))


def _message(chance: Chance) -> bytes:
    keys = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "function_call", "path", "type")
    message = {"role": "user", "content": "x", chance.choice(keys): _value(chance)}
    return _post(CHAT, _as_json({"messages": [message] * chance.choice([1, 1, 2, 2000]), "max_tokens": 1}))


def _deep(chance: Chance) -> bytes:
    levels = chance.choice([65, 1000, 100_000])
    opened, closed = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opened * levels + b"1" + closed * levels
    return _post(CHAT, b'{"messages": ' + inner + b"}")


def _many(chance: Chance) -> bytes:
    item = chance.choice([b"[],", b"0,", b'"",', b"{},"])
    return _post(CHAT, b'{"messages": [' + item * chance.choice([10_000, 400_000]) + b"0]}")


def _schema(chance: Chance) -> bytes:
    """Formats and tools with odd schemas."""
    schemas: list[Any] = [
        {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
        {"$ref": "http://127.0.0.1:1/x"},
        {"type": "string", "pattern": "(a+)+$" * 5},
        {"type": "array", "minItems": 10**9},
        {"enum": []},
        {"anyOf": [{"type": "string"}] * 200},
        {"type": "object", "properties": {f"k{i}": {"type": "object"} for i in range(300)}},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 3},
        {"type": 5},
        {"not": {}},
        _value(chance),
    ]
    schema = chance.choice(schemas)
    if chance.random() < 0.5:
        described = {"name": "A", "schema": schema, "strict": chance.random() < 0.5}
        return _chat("x", response_format={"type": "json_schema", "json_schema": described})
    function = {"name": "f", "parameters": schema}
    return _chat(
        "x", tools=[{"type": "function", "function": function}], tool_choice=chance.choice(["auto", "required"])
    )


def _png(width: int, height: int, rows: int) -> bytes:
    """A PNG whose header says so many pixels, and which has some rows of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\0" * min(3 * width, 10**6)) * rows, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _image(chance: Chance) -> bytes:
    datas = [
        _png(100_000, 100_000, 1),
        _png(20_000, 20_000, 2),
        _png(10, 10, 3),
        chance.randbytes(200),
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"%!PS\n%%EOF",
        b"\0" * 10**6,
    ]
    urls = [
        "data:image/png;base64," + base64.b64encode(chance.choice(datas)).decode(),
        "data:image/png;base64,%%%",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:,x",
    ]
    return _chat([{"type": "image_url", "image_url": {"url": chance.choice(urls)}}])


def _wav(chance: Chance) -> bytes:
    """A header that says more than there is."""
    data = chance.randbytes(chance.choice([0, 10, 3000]))
    size = chance.choice([len(data), 0xFFFFFFFF])
    head = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    return head + b"data" + struct.pack("<I", size) + data


def _sound(chance: Chance) -> bytes:
    if chance.random() < 0.5:
        data = base64.b64encode(_wav(chance)).decode()
        return _chat([{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}])
    border = chance.choice(["x", "x" * 200, ""])
    names = ["file", "model", "language", "prompt", "temperature", "response_format", _text(chance).replace('"', "")]
    body = io.BytesIO()
    for _ in range(chance.choice([0, 1, 2, 50])):
        name = chance.choice(names)
        filed = '; filename="a.wav"' if chance.random() < 0.5 else ""
        body.write(
            f'--{border}\r\ncontent-disposition: form-data; name="{name}"{filed}\r\n\r\n'.encode("utf-8", "replace")
        )
        body.write(_wav(chance) + b"\r\n")
    body.write(chance.choice([f"--{border}--\r\n".encode(), b""]))
    data_ = body.getvalue()
    head = [("content-type", f"multipart/form-data; boundary={border}"), ("content-length", str(len(data_)))]
    return _head("POST", chance.choice(PATHS[4:]), [*head, ("connection", "close")]) + data_


def _key(chance: Chance) -> bytes:
    guess = chance.choice(
        ["Bearer ", "bearer x", "Basic eDp5", "Bearer " + "k" * 5000, "Bearer \xff", "", "Bearer a b"]
    )
    return _post(
        CHAT, _as_json({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}), ("authorization", guess)
    )


def _route(chance: Chance) -> bytes:
    path = chance.choice(
        [
            "/..%2f..%2fetc/passwd",
            "//",
            "/v1",
            "/v1/models/../../x",
            "/v1/models/%00",
            "/%ff",
            "/v1/chat/completions?x=" + "y" * 2000,
        ]
    )
    method = chance.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "HEAD", "BREW"])
    return _head(method, path, [("content-length", "0"), ("connection", "close")])


def _headers(chance: Chance) -> bytes:
    odd = chance.choice(
        [
            [("content-length", "-1")],
            [("content-length", "99999999999")],
            [("content-length", "5"), ("content-length", "6")],
            [("transfer-encoding", "chunked"), ("content-length", "3")],
            [("x" * 500, "y")] * 200,
            [("x", "y" * 100_000)],
            [("expect", "100-continue"), ("content-length", "3000")],
            [("upgrade", "websocket"), ("connection", "upgrade"), ("content-length", "0")],
            [("bad header", "x")],
            [("x", "a\x00b")],
        ]
    )
    return _head("POST", CHAT, odd) + b"{}\r\n"


def _chunked(chance: Chance) -> bytes:
    head = _head("POST", CHAT, [("transfer-encoding", "chunked"), ("connection", "close")])
    chunks = chance.choice(
        [
            b"zz\r\n{}\r\n0\r\n\r\n",
            b"2\r\n{}\r\n0\r\n\r\n",
            b"1\r\n{\r\n" * 2000 + b"0\r\n\r\n",
            b"ffffffffff\r\n{",
            b"-1\r\n",
        ]
    )
    return head + chunks


def _noise(chance: Chance) -> bytes:
    return chance.choice(
        [
            _any_bytes(chance),
            b"GET / HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"\r\n" * 5000,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
    )


KINDS: tuple[tuple[str, Callable[[Chance], bytes], bool], ...] = (
    ("one thing wrong", _valid_with_one_wrong, False),
    ("one thing wrong", _valid_with_one_wrong, False),
    ("message", _message, False),
    ("body of bytes", lambda chance: _post(chance.choice(PATHS), _any_bytes(chance)), False),
    ("any JSON", lambda chance: _post(chance.choice(PATHS), _as_json(_value(chance, 5))), False),
    ("text", lambda chance: _chat(_text(chance)), False),
    ("depth", _deep, False),
    ("many values", _many, False),
    ("schema", _schema, False),
    ("image", _image, False),
    ("sound", _sound, False),
    ("key", _key, False),
    ("route", _route, False),
    ("headers", _headers, True),
    ("chunks", _chunked, True),
    ("noise", _noise, True),
)


def made(seed: int, index: int) -> Sent:
    """The request of this number."""
    chance = random.Random(seed * 1_000_003 + index)
    kind, make, is_cut = chance.choice(KINDS)
    data = make(chance)
    if chance.random() < 0.03:
        return Sent(f"{kind}, cut", data[: chance.randint(0, len(data))], True)
    return Sent(kind, data, is_cut)


async def _send(host: str, port: int, sent: Sent) -> str:
    """The status, or "closed" where there is none."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(sent.data)
        try:
            await writer.drain()
            if sent.is_cut:
                writer.write_eof()
            line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
            await asyncio.wait_for(reader.read(1 << 20), PATIENCE_S)
        except (ConnectionError, OSError):
            return "closed"
        parts = line.split()
        return parts[1].decode() if len(parts) > 1 and line.startswith(b"HTTP/") else "closed"
    finally:
        writer.close()


async def hostile(server: Server, requests: int, seed: int, at_once: int = 8) -> Seen:
    """Send them, some at once."""
    host, port = server.url.removeprefix("http://").split(":")
    seen = Seen()
    numbers = iter(range(requests))

    async def one() -> None:
        for number in numbers:
            sent = made(seed, number)
            try:
                status = await _send(host, int(port), sent)
            except TimeoutError:
                status = "silent"
            seen.statuses[status] += 1
            is_fine = status == "closed" or (status.isdigit() and int(status) in DOCUMENTED)
            if not is_fine or (status == "closed" and not sent.is_cut):
                seen.problems.append(f"request {number} ({sent.kind}): {status}: {sent.data[:300]!r}")
            if number % 50 == 0:
                seen.hard_kib.append(server.hard_kib)

    await asyncio.gather(*(one() for _ in range(at_once)))
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    if b'"model_loaded":true' not in await asyncio.wait_for(reader.read(), PATIENCE_S):
        seen.problems.append("the server is not well afterwards")
    writer.close()
    return seen


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--requests", default=10_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--options", type=shlex.split, default="", help="Of gemma-edge serve, as one word.")
def main(bundle: Path, requests: int, seed: int, options: Sequence[str]) -> None:
    """Send requests that nobody should; exit status 1 where the server does not stay well."""
    with serving(bundle, *options) as server:
        seen = asyncio.run(hostile(server, requests, seed))
        log = server.log.read_text(errors="replace")
    print(f"{dict(seen.statuses)}; memory {seen.hard_kib[0] / 1024:.1f} MiB, most {max(seen.hard_kib) / 1024:.1f}")
    print(*seen.problems[:20], sep="\n")
    if "Traceback" in log:
        print(log[log.index("Traceback") - 500 :][:6000])
    sys.exit(bool(seen.problems) or "Traceback" in log or max(seen.hard_kib) - seen.hard_kib[0] > GROWTH_KIB)


if __name__ == "__main__":
    main()
