"""Tokens a second of one stream and of several at once, over HTTP.

python -m tools.serve_streams BUNDLE [--streams 4] [--tokens 64] [--rounds 5] [--options '--threads 2']
"""

import asyncio
import json
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import click
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


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--streams", default=4, show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--options", default="", help="Of gemma-edge serve, as one word.")
def main(bundle: Path, streams: int, tokens: int, rounds: int, options: str) -> None:
    """Print the rates of one stream and of several at once, and their ratio."""
    one, several = [], []
    with serving(bundle, *shlex.split(options)) as server:
        asyncio.run(_rate(server.url, streams, 4))
        for _ in range(rounds):  # in turns: what else runs here meets both
            one.append(asyncio.run(_rate(server.url, 1, tokens)))
            several.append(asyncio.run(_rate(server.url, streams, tokens)))
    ratio = statistics.median(b / a for a, b in zip(one, several, strict=True))
    rates = f"1 stream {statistics.median(one):.1f} tok/s, {streams} streams {statistics.median(several):.1f}"
    click.echo(f"{rates}: {ratio:.2f}")


if __name__ == "__main__":
    main()
