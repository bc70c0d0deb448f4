"""Many clients at once on one server, a third of them slow or leaving: no reply may be lost, or another's.

    python -m tools.serve_load BUNDLE [--clients 200] [--minutes 10] [--options '--slots 2']

Every reply is compared with what the server said to the same prompt alone. Exit status 1 where one differs, where a
refusal has no Retry-After, or where memory grows.
"""

import asyncio
import json
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from tools.serving import Server, serving

OPENINGS = (
    "In the beginning", "And it came to pass", "It is a truth universally acknowledged", "He went to the house",
    "The sun rose", "Now there was a man", "And they answered, saying", "Let us go up",
)  # fmt: skip
PROMPTS = [f"{opening}, and {number} times more: {opening}" for opening in OPENINGS for number in range(3)]
TOKENS = 16
PATH = "/v1/chat/completions"


@dataclass
class Seen:
    """What happened. first_s: from asking until the first piece, of replies that were read. problems: what must not
    be."""

    counts: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hard_kib: list[tuple[float, int]] = field(default_factory=list)

    def slope_kib_per_minute(self) -> float:
        """Of memory, in the second half of the time."""
        later = self.hard_kib[len(self.hard_kib) // 2 :]
        if len(later) < 3:
            return 0.0
        seconds, sizes = np.array(later, float).T
        return float(np.polyfit(seconds / 60, sizes, 1)[0])


def _request(prompt: str, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "temperature": 0, "max_tokens": TOKENS, "stream": stream}


async def _alone(client: httpx.AsyncClient) -> dict[str, str]:
    """What the server says to each prompt when nobody else asks."""
    said = {}
    for prompt in PROMPTS:
        reply = await client.post(PATH, json=_request(prompt, stream=False))
        reply.raise_for_status()
        said[prompt] = reply.json()["choices"][0]["message"]["content"]
    return said


class _Client:
    """One of many. kind: "plain", "slow" or "leaving"."""

    def __init__(self, http: httpx.AsyncClient, kind: str, expected: dict[str, str], seen: Seen, seed: int) -> None:
        self._http, self._kind, self._expected, self._seen = http, kind, expected, seen
        self._chance = random.Random(seed)

    async def run(self, end: float, answers: int) -> None:
        """answers: to so many of all clients it goes on, for two minutes after the end at most."""
        while (now := time.monotonic()) < end or (self._seen.counts["answered"] < answers and now < end + 120):
            prompt = self._chance.choice(PROMPTS)
            try:
                await self._ask(prompt)
            except httpx.HTTPError as error:
                self._seen.problems.append(f"{self._kind}: {type(error).__name__} {error}")
            if self._chance.random() < 0.3:
                await asyncio.sleep(self._chance.random())

    async def _ask(self, prompt: str) -> None:
        if self._kind == "plain" and self._chance.random() < 0.5:
            started = time.monotonic()
            reply = await self._http.post(PATH, json=_request(prompt, stream=False))
            if await self._is_refused(reply):
                return
            self._seen.first_s.append(time.monotonic() - started)
            self._check(prompt, reply.json()["choices"][0]["message"]["content"])
            return
        await self._stream(prompt)

    async def _stream(self, prompt: str) -> None:
        started, text = time.monotonic(), ""
        patience = self._chance.uniform(0, 2) if self._kind == "leaving" else None
        try:
            async with (
                asyncio.timeout(patience),
                self._http.stream("POST", PATH, json=_request(prompt, stream=True)) as reply,
            ):
                if await self._is_refused(reply):
                    return
                is_first = True
                async for line in reply.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    if is_first:
                        is_first = False
                        self._seen.first_s.append(time.monotonic() - started)
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        self._seen.problems.append(f"broke off: {chunk}")
                        return
                    text += chunk["choices"][0]["delta"].get("content", "")
                    if self._kind == "slow":
                        await asyncio.sleep(self._chance.uniform(0, 0.2))
        except TimeoutError:
            self._seen.counts["left"] += 1
            return
        self._check(prompt, text)

    async def _is_refused(self, reply: httpx.Response) -> bool:
        if reply.status_code == 200:
            return False
        await reply.aread()
        self._seen.counts[str(reply.status_code)] += 1
        if reply.status_code not in (429, 503) or "retry-after" not in reply.headers:
            self._seen.problems.append(f"{reply.status_code} {dict(reply.headers)} {reply.text[:200]}")
        await asyncio.sleep(min(float(reply.headers.get("retry-after", 1)), 3) * self._chance.uniform(0.5, 1))
        return True

    def _check(self, prompt: str, text: str) -> None:
        self._seen.counts["answered"] += 1
        if text != self._expected[prompt]:
            self._seen.problems.append(f"{prompt!r} got {text!r}, alone {self._expected[prompt]!r}")


async def load(server: Server, clients: int, seconds: float, seed: int = 1, answers: int = 0) -> Seen:
    """Lets them ask, for so long and until there are so many answers."""
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
        expected = await _alone(http)
        kinds = ["slow" if i % 6 == 0 else "leaving" if i % 6 == 3 else "plain" for i in range(clients)]
        end = time.monotonic() + seconds
        people = [
            _Client(http, kind, expected, seen, seed * 10_000 + i).run(end, answers) for i, kind in enumerate(kinds)
        ]
        watch = asyncio.ensure_future(_watch(server, seen))
        await asyncio.gather(*people)
        watch.cancel()
        if (await _alone(http)) != expected:
            seen.problems.append("after all, a prompt alone has another reply than before")
    return seen


async def _watch(server: Server, seen: Seen) -> None:
    while True:
        seen.hard_kib.append((time.monotonic(), server.hard_kib))
        await asyncio.sleep(2)


def report(seen: Seen) -> str:
    """A few lines."""
    p50, p95 = np.percentile(seen.first_s or [0.0], [50, 95])
    sizes = [size for _, size in seen.hard_kib] or [0]
    return (
        f"{dict(seen.counts)}; until the first piece p50 {p50:.2f} s, p95 {p95:.2f} s; memory {sizes[0] / 1024:.1f} to "
        f"{sizes[-1] / 1024:.1f} MiB, most {max(sizes) / 1024:.1f}, slope {seen.slope_kib_per_minute():.0f} KiB/min; "
        f"{len(seen.problems)} problems"
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--clients", default=200, show_default=True)
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--slope", default=512.0, show_default=True, help="KiB a minute that memory may grow by.")
@click.option("--options", type=shlex.split, default="", help="Of gemma-edge serve, as one word.")
def main(bundle: Path, clients: int, minutes: float, seed: int, slope: float, options: Sequence[str]) -> None:
    """Ask with many clients at once; exit status 1 where a reply is lost or another's, or memory grows."""
    with serving(bundle, *options) as server:
        seen = asyncio.run(load(server, clients, minutes * 60, seed))
        log = server.log.read_text(errors="replace")
    print(report(seen))
    print(*seen.problems[:10], sep="\n")
    if "Traceback" in log:
        print(log[-4000:])
    sys.exit(bool(seen.problems) or "Traceback" in log or seen.slope_kib_per_minute() > slope)


if __name__ == "__main__":
    main()
