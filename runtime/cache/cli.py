"""`gemma-edge warm` and `gemma-edge cache`."""

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma_edge.profiles.completion import offer_profiles

if TYPE_CHECKING:
    from gemma_edge.runtime.cache.entries import Entry

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
cache_dir_option = click.option("--cache-dir", help="The cache folder.  [default: ~/.cache/gemma-edge]")


class Age(click.ParamType[float]):
    """A time span, in seconds."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """ "30d" -> 2592000.0"""
        found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([mhdw])", str(value))
        if found is None:
            self.fail(f"{value!r}: expected a number and m, h, d or w, such as 30d", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class Size(click.ParamType[int]):
    """A number of bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """ "4 GiB" -> 4294967296"""
        from gemma_edge.profiles.sizes import parse_size

        try:
            size = parse_size(str(value))
        except ValueError:
            size = -1
        if size < 0:
            self.fail(f"{value!r}: expected a size with its unit, such as 4GB", param, ctx)
        return size


@click.command("warm")
@click.argument("bundle", type=click.Path())
@click.option(
    "--profile",
    shell_complete=offer_profiles,
    help="Keep this device's memory budget; refuse a bundle that does not fit.",
)
@click.option("--threads", type=int, help="Cores to use.  [default: at most 4]")
@click.option("--cache-dir", help="Where packed weights are kept.  [default: ~/.cache/gemma-edge]")
def warm_main(bundle: str, profile: str | None, threads: int | None, cache_dir: str | None) -> None:
    """Read a bundle through and pack its weights, so that the first start is as quick as any."""
    from gemma_edge.runtime.cache.warm import warm

    for line in warm(bundle, profile, threads, cache_dir):
        click.echo(line)


@click.group("cache")
def cache_main() -> None:
    """The folder of packed weights: what lies in it, and clearing it up."""


@cache_main.command("list")
@cache_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_main(cache_dir: str | None, as_json: bool) -> None:
    """What lies in the cache: kind, bundle, size, last use."""
    folder, found = _entries(cache_dir)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "entries": [_values(entry) for entry in found]}, indent=2))
        return
    _print(found)
    click.echo(f"{_total(found)} in {folder}")


@cache_main.command("prune")
@cache_dir_option
@click.option("--older-than", type=Age(), help="What was not used for so long: 12h, 30d, 8w.")
@click.option("--max-bytes", type=Size(), help="What was used longest ago, until the rest is no larger: 4GB.")
@click.option("--gone", is_flag=True, help="What was made from bundles that are gone or were changed.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def prune_main(
    cache_dir: str | None, older_than: float | None, max_bytes: int | None, gone: bool, dry_run: bool
) -> None:
    """Remove from the cache what meets one of the options, and what processes that died have left.

    What is removed is packed again when it is needed; a running process keeps what it has.
    """
    from gemma_edge.runtime.cache.prune import Rule, remove

    if older_than is None and max_bytes is None and not gone:
        raise click.UsageError("say what shall go: --older-than, --max-bytes or --gone")
    folder, found = _entries(cache_dir)
    rule = Rule(None if older_than is None else time.time() - older_than, max_bytes, gone)
    chosen = rule.chosen(found)
    if dry_run:
        _print(chosen)
        click.echo(f"would remove {_total(chosen)} from {folder}")
        return
    removed, busy = remove(folder, chosen) if chosen else ([], [])
    _print(removed)
    click.echo(f"removed {_total(removed)} from {folder}")
    for entry in busy:
        click.echo(f"{entry.name}: is being written, and stays")


def _entries(cache_dir: str | None) -> "tuple[Path, list[Entry]]":
    from gemma_edge.profiles.paths import user_path
    from gemma_edge.runtime.cache.entries import entries
    from gemma_edge.runtime.executors.litert.weight_cache import default_cache_dir
    from gemma_edge.runtime.packing.folder import place_of

    folder = place_of(user_path(cache_dir) if cache_dir else default_cache_dir())
    return folder, entries(folder)


def _values(entry: "Entry") -> dict[str, Any]:
    bundle = None if entry.bundle is None else str(entry.bundle)
    return {**asdict(entry), "kind": entry.kind.value, "state": entry.state.value or "there", "bundle": bundle}


def _print(found: "list[Entry]") -> None:
    from gemma_edge.profiles.sizes import format_bytes

    for entry in found:
        path = "-" if entry.bundle is None else str(entry.bundle)
        bundle = path if path.isprintable() else repr(path)  # nothing in a name steers the terminal
        state = f" ({entry.state.value})" if entry.state.value else ""
        used = time.strftime("%Y-%m-%d", time.localtime(entry.used_at))
        click.echo(
            f"{entry.kind.value:<15}{format_bytes(entry.nbytes):>10}  {used}  {bundle}{state}  {entry.name[:12]}"
        )


def _total(found: "list[Entry]") -> str:
    from gemma_edge.profiles.sizes import format_bytes

    return f"{len(found)} entr{'y' if len(found) == 1 else 'ies'}, {format_bytes(sum(entry.nbytes for entry in found))}"
