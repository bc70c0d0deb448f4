"""`gemma-edge compare`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemma_edge.profiles.sizes import MIB

if TYPE_CHECKING:
    from gemma_edge.runtime.measure.compare import Comparison, Cost


@click.command("compare")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--text", type=click.Path(path_type=Path), help="A text file to read.")
@click.option("--tokens", type=click.Path(path_type=Path), help="Token ids to read: little-endian uint16.")
@click.option("--limit", type=click.IntRange(min=2), default=2048, show_default=True, help="Tokens to read at most.")
@click.option(
    "--window", type=click.IntRange(min=2), default=256, show_default=True, help="Tokens per independent window."
)
@click.option(
    "--greedy",
    "greedy_tokens",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Tokens to generate greedily, each model in turn; their speed is shown.",
)
@click.option("--threads", type=int, help="Cores for each model.  [default: at most 4]")
@click.option("--cache-dir", help="Where packed weights are kept.  [default: ~/.cache/gemma-edge]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare_main(
    a: str,
    b: str,
    text: Path | None,
    tokens: Path | None,
    limit: int,
    window: int,
    greedy_tokens: int,
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Compare two models of one checkpoint (bundles or ONNX directories) on the same text."""
    compare_paths((a, b), (text, tokens), limit, window, greedy_tokens, threads, cache_dir, as_json)


def compare_paths(
    paths: tuple[str, str],
    texts: tuple[Path | None, Path | None],
    limit: int,
    window: int,
    greedy_tokens: int,
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
    module_of: Callable[[str], str | None] = lambda _: None,
) -> None:
    """The command. texts: a text, or token ids. module_of: what runs the model at a path, if it is not ours."""
    import numpy as np

    from gemma_edge.runtime.measure.compare import compare
    from gemma_edge.runtime.measure.compare_process import OURS, ModelProcess

    text, tokens = texts
    source = text or tokens
    if source is None or (text and tokens):
        raise click.UsageError("what to read: give either --text or --tokens")
    try:
        content = source.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{source}: {error.strerror}") from error
    if tokens is not None and len(content) % 2:
        raise click.UsageError(f"{source}: found {len(content)} bytes, expected ids of 2 bytes each; --text reads text")
    try:
        words = "" if text is None else content.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source}: no UTF-8 text ({error.reason}); --tokens reads token ids") from error
    opened = [ModelProcess(path, threads, cache_dir, module_of(path) or OURS) for path in paths]
    with opened[0] as model_a, opened[1] as model_b:
        token_ids = np.frombuffer(content, "<u2").tolist() if text is None else model_a.tokenize(words)
        comparison = compare(model_a, model_b, token_ids[:limit], window, greedy_tokens)
    click.echo(json.dumps(asdict(comparison), indent=2) if as_json else comparison_table(comparison))


def comparison_table(comparison: "Comparison") -> str:
    """For people."""
    found = comparison.distance
    lines = [
        f"tokens                   {found.tokens}",
        f"KL(A || B), KL(B || A)   {found.kl_ab:.6f}, {found.kl_ba:.6f} nats",
        f"same most likely token   {found.top1:.2%}",
        f"largest logit difference {found.largest_logit_difference:.4g}",
        f"greedy text              {comparison.greedy_same_tokens} of {comparison.greedy_tokens} tokens the same",
        "",
        f"{'':24} {'A':>12} {'B':>12}",
        f"{'perplexity':24} {found.perplexity_a:>12.3f} {found.perplexity_b:>12.3f}",
    ]
    a, b = comparison.a, comparison.b
    for name, left, right in (
        ("on disk", a.size_bytes, b.size_bytes),
        ("anonymous memory", a.anon_bytes, b.anon_bytes),
        ("mapped memory", a.file_bytes, b.file_bytes),
    ):
        lines.append(f"{name:24} {left / MIB:>8.0f} MiB {right / MIB:>8.0f} MiB")
    lines.append(f"{'decoding':24} {_speed(a)} {_speed(b)}")
    return "\n".join(lines)


def _speed(cost: "Cost") -> str:
    return f"{cost.decode_tokens_per_s:>6.1f} tok/s" if cost.decode_tokens_per_s else f"{'not run here':>12}"
