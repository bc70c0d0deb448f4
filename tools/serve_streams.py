"""Tokens a second of one stream and of several at once, over HTTP.

python -m tools.serve_streams BUNDLE [--streams 4] [--tokens 64] [--rounds 5] [--options '--threads 2']
"""

import argparse
import asyncio
import json
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from tools.serving import serving

PATH = "/v1/completions"


async def _stream(client: httpx.AsyncClient, text: str, tokens: int) -> int:
    """Tokens that came."""
    body: dict[str, Any] = {"prompt": text, "temperature": 0, "max_tokens": tokens, "stream": True}
    usage = 0
    async with client.stream("POST", PATH, json={**body, "stream_options": {"include_usage": True}}) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                usage = (json.loads(line[6:])["usage"] or {"completion_tokens": 0})["completion_tokens"]
    return usage


async def _rate(url: str, streams: int, tokens: int) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        started = time.monotonic()
        counts = await asyncio.gather(*(_stream(client, f"In the beginning, {i}", tokens) for i in range(streams)))
        return sum(counts) / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--options", type=shlex.split, default=[], help="of gemma-edge serve, as one word")
    asked = parser.parse_args()
    one, several = [], []
    with serving(asked.bundle, *asked.options) as server:
        asyncio.run(_rate(server.url, asked.streams, 4))
        for _ in range(asked.rounds):  # in turns: what else runs here meets both
            one.append(asyncio.run(_rate(server.url, 1, asked.tokens)))
            several.append(asyncio.run(_rate(server.url, asked.streams, asked.tokens)))
    ratio = statistics.median(b / a for a, b in zip(one, several, strict=True))
    rates = f"1 stream {statistics.median(one):.1f} tok/s, {asked.streams} streams {statistics.median(several):.1f}"
    print(f"{rates}: {ratio:.2f}")


if __name__ == "__main__":
    main()
