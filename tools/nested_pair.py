"""Train a model and a slice of it together, so that the slice speaks: what drafting with it is measured on.

    python -m tools.nested_pair PAIR
    convert --target custom-int4 --checkpoint PAIR --with-slice PAIR/small.toml --draft 2,4 --out pair.litertlm
    python -m tools.bench_draft pair.litertlm --draft-model small

Continues the training of tests/fixtures/tiny-gemma3n with MatFormer's loss (arXiv 2310.07707), the sum of both models'
losses on the same text, where the smaller one's weights are a part of the larger one's. The text is val.bin but for its
last tenth, on which both are measured. Some minutes on one core.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.slices.view import Cut, Spans, sliced
from gemma_edge.converter.models.matformer.slices import Slice

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
SMALL = Slice("small", ffn=(128,) * 7, skipped=(5,))
"""Half of each feed-forward layer, and one layer fewer of those that share keys and values, as E2B is of E4B."""
WINDOW = 128


def cut(values: torch.Tensor, where: Cut) -> torch.Tensor:
    """The part of a weight, still a part of it: what it learns the whole learns."""
    for axis, spans in enumerate((where.rows, where.columns)):
        if spans is not None and axis < values.ndim:
            values = _along(values, spans, axis)
    return values


def _along(values: torch.Tensor, spans: Spans, axis: int) -> torch.Tensor:
    return torch.cat([values.narrow(axis, begin, end - begin) for begin, end in spans], axis)


class Pair:
    """A model, and a slice that has no weights of its own."""

    def __init__(self, checkpoint: Path) -> None:
        self.large = Gemma3nForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        view = sliced(Checkpoint.open(checkpoint), SMALL)
        self._cuts: Mapping[str, Cut] = {
            view.prefix + name: replace(where, source=view.prefix + where.source) for name, where in view.cuts.items()
        }
        config = SMALL.config(json.loads((checkpoint / "config.json").read_text()))
        self._small = Gemma3nForCausalLM(Gemma3nTextConfig(**config)).to(torch.float32)

    def losses(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats a token of both, of windows [B, T]."""
        whole = dict(self.large.named_parameters())
        weights = {
            name: cut(whole[self._cuts[name].source], self._cuts[name]) if name in self._cuts else whole[name]
            for name, _ in self._small.named_parameters()
        }
        return _loss(self.large(ids).logits, ids), _loss(functional_call(self._small, weights, (ids,)).logits, ids)


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--steps", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(directory: Path, steps: int, seed: int) -> None:
    """Write the trained checkpoint to DIRECTORY, and the slice as DIRECTORY/small.toml."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    random = np.random.default_rng(seed)
    source = FIXTURES / "tiny-gemma3n"
    pair = Pair(source)
    tokens = np.fromfile(FIXTURES / "val.bin", np.uint16).astype(np.int64)
    train, held_out = np.split(tokens, [len(tokens) * 9 // 10])
    held = torch.from_numpy(held_out[: len(held_out) // WINDOW * WINDOW].reshape(-1, WINDOW))

    def report(step: int) -> None:
        pair.large.eval()
        with torch.no_grad():
            large, small = (float(loss) for loss in pair.losses(held))
        click.echo(f"step {step}: held out {large:.3f} nats a token, the slice {small:.3f}")

    optimizer = torch.optim.AdamW(pair.large.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    report(0)
    for step in range(1, steps + 1):
        starts = random.integers(0, len(train) - WINDOW, 8)
        ids = torch.from_numpy(np.stack([train[start : start + WINDOW] for start in starts]))
        optimizer.zero_grad()
        sum(pair.losses(ids), start=torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(pair.large.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            report(step)
    pair.large.to(torch.bfloat16).save_pretrained(directory)
    for path in source.glob("token*"):
        shutil.copy(path, directory)
    (directory / "small.toml").write_text(f"ffn = {list(SMALL.ffn)}\nskipped = {list(SMALL.skipped)}\n")


if __name__ == "__main__":
    main()
