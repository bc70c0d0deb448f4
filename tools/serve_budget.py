"""Chats on a server that may use what a device has, and no page more: a cgroup of the profile's budget.

    python -m tools.serve_budget e2b.litertlm --profile phone-2gb --context 1024 --slots 2 --turns 4

Each slot has a chat, which goes on in turns with the others. Exit status 1 where a turn fails, where a chat runs a
token twice, where the kernel had to kill, or where one slot more would start. Needs root.
"""

import sys
import time
from pathlib import Path

import click
import httpx

from gemma_edge.profiles.device import load_profile
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.memory.cgroup import MemoryCgroup, evict_from_page_cache
from gemma_edge.runtime.memory.reading import PeakSampler
from tools.serving import Server, serving

TOKENS = 24


class Chat:
    """Counts what its turns cost."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._messages: list[dict[str, str]] = []
        self._held = 0
        self.again = 0  # tokens that ran a second time

    def turn(self, client: httpx.Client) -> str:
        """Ask something more; what happened, for people."""
        text = f"And what of number {self._number * 100 + len(self._messages)}, in those days?"
        self._messages.append({"role": "user", "content": text})
        started = time.monotonic()
        reply = client.post("/v1/chat/completions", json={"messages": self._messages, "max_tokens": TOKENS})
        reply.raise_for_status()
        said = reply.json()
        self._messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"] or "-"})
        usage = said["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.again += max(0, self._held - cached)
        self._held = usage["prompt_tokens"] - 1
        return (
            f"chat {self._number}: {usage['prompt_tokens']} tokens, {cached} of them held, "
            f"{usage['completion_tokens']} drawn, {time.monotonic() - started:.1f} s"
        )


def chats(server: Server, count: int, turns: int) -> int:
    """Tokens that ran twice."""
    found = [Chat(number) for number in range(count)]
    with httpx.Client(base_url=server.url, timeout=600) as client:
        for _ in range(turns):
            for chat in found:
                click.echo(chat.turn(client))
        state = client.get("/v1/stats").json()["state"]
    click.echo(
        f"own count: {format_bytes(state['hard_bytes'])} anonymous, {format_bytes(state['file_bytes'])} of files"
    )
    return sum(chat.again for chat in found)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--profile", "profile_name", default="phone-2gb", show_default=True)
@click.option("--context", default=1024, show_default=True, help="Tokens a chat may have.")
@click.option("--slots", default=2, show_default=True, help="Chats.")
@click.option("--turns", default=4, show_default=True, help="Of each chat.")
def main(bundle: Path, profile_name: str, context: int, slots: int, turns: int) -> None:
    """Serve BUNDLE inside the budget of a profile."""
    limit = load_profile(profile_name).budget_bytes
    options = ("--profile", profile_name, "--context", str(context), "--slots")
    for path in [bundle] if bundle.is_file() else sorted(bundle.iterdir()):
        evict_from_page_cache(path)  # so that its pages are charged
    with MemoryCgroup(limit) as cgroup:
        with serving(bundle, *options, str(slots), within=cgroup.command) as server, PeakSampler(cgroup.pids) as peak:
            again = chats(server, slots, turns)
        kills, charged = cgroup.oom_kills(), cgroup.peak_bytes()
    click.echo(
        f"{format_bytes(limit)} allowed, {format_bytes(peak.peak.hard_bytes)} anonymous and "
        f"{format_bytes(peak.peak.file_bytes)} of files at the most, "
        f"{'no peak kept' if charged is None else format_bytes(charged) + ' charged'}; "
        f"killed {kills}, tokens run twice {again}"
    )
    refused = None
    try:
        with serving(bundle, *options, str(slots + 1)):
            pass
    except RuntimeError as error:
        refused = str(error).strip().rpartition("\n")[2]
    click.echo(f"{slots + 1} slots: {refused or 'started'}")
    sys.exit(bool(kills or again or refused is None))


if __name__ == "__main__":
    main()
