"""What each decision of the int4-fast recipe costs: KL and top-1 of fake-quantized weights against float32, per role.

    python -m tools.ablate_recipe CHECKPOINT TOKENS.bin [--tokens 16384]

Runs Hugging Face transformers with weights stored and read back by the converter's own quantization; activations
stay float32 except in the rows that say "int8 activations", where the input of every linear layer is rounded per token
as XNNPACK does. TOKENS.bin holds uint16 token ids (tests/fixtures/val.bin). Weights are neither balanced nor turned:
what a bundle loses is what `convert` and `verify` say.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
import transformers

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.quantize.quantize import Search, quantize_rows
from gemma_edge.converter.quantize.recipes import Recipe, Storage
from gemma_edge.converter.tensors import Role, TensorSpec
from gemma_edge.runtime.formats.encoding import Encoding

WINDOW_TOKENS = 256
BATCH = 16


@dataclass(frozen=True)
class Quality:
    """Means over tokens. kl: KL(float32 || quantized) in nats. top1: share of equal arg max."""

    kl: float
    top1: float


class FakeQuantized:
    """A transformers model whose weights can be stored by a recipe and read back, over and over.

    The head gets a copy of a tied table, so that the two may differ.
    """

    def __init__(self, path: Path) -> None:
        transformers.logging.set_verbosity_error()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())
        specs = Model.from_json(Checkpoint.open(path).text_config).tensors.values()
        self.originals = {spec: self._parameter(spec).detach().clone() for spec in specs}

    def _parameter(self, spec: TensorSpec) -> torch.Tensor:
        name = "lm_head.weight" if spec.role is Role.HEAD else f"model.{spec.source}"
        return self.model.get_parameter(name) if name in self._parameter_names else self.model.get_buffer(name)

    @property
    def _parameter_names(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters()}

    def store(self, recipe: Recipe) -> None:
        """Replaces every weight by what `recipe` keeps of it."""
        for spec, original in self.originals.items():
            storage = recipe.storage(spec)
            stored = quantize_rows(original.numpy(), storage.encoding, storage.search)
            back = storage.encoding.dequantize(stored.data, stored.scales, original.shape)
            self._parameter(spec).data.copy_(torch.from_numpy(back))

    @contextmanager
    def int8_activations(self) -> Iterator[None]:
        """Rounds the input of every linear layer to 8 bits per token, with a zero point."""
        hooks = [
            module.register_forward_pre_hook(lambda _, inputs: (_round_per_token(inputs[0]), *inputs[1:]))
            for module in self.model.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def log_probabilities(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Batches of float32 [tokens, vocabulary] for int64 `windows`, [n, WINDOW_TOKENS]."""
        for batch in windows.split(BATCH):
            with torch.no_grad():
                logits = self.model(batch, use_cache=False).logits  # [n, T, V]
            yield logits.flatten(0, 1).log_softmax(-1)


def _round_per_token(x: torch.Tensor) -> torch.Tensor:
    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-30)
    zero = (-128 - low / scale).round()
    return (((x / scale).round() + zero).clamp(-128, 127) - zero) * scale


def compare(model: FakeQuantized, reference: list[torch.Tensor], windows: torch.Tensor) -> Quality:
    """`model` as it is now against the log-probabilities it had before."""
    kl, equal, tokens = 0.0, 0, 0
    for expected, found in zip(reference, model.log_probabilities(windows), strict=True):
        kl += float((expected.exp() * (expected - found)).sum(dtype=torch.float64))
        equal += int((expected.argmax(-1) == found.argmax(-1)).sum())
        tokens += len(expected)
    return Quality(kl / tokens, equal / tokens)


def changed(recipe: Recipe, encodings: Mapping[Role, str], search: Search = Search.MSE) -> Recipe:
    """`recipe` with other encodings for some roles, and one search for all."""
    roles = {
        role: Storage(Encoding.parse(encodings.get(role, storage.encoding.name)), search)
        for role, storage in recipe.roles.items()
    }
    return replace(recipe, roles=roles)


def variants(roles: set[Role]) -> Iterator[tuple[str, Recipe]]:
    """The rows of the table: whole recipes, then one role at int4 and all others at float32."""
    int4, fp32 = Recipe.named("int4-fast"), Recipe.named("fp32")
    big = (Role.ATTENTION, Role.FFN)
    yield "int8", Recipe.named("int8")
    yield "int4-fast", int4
    yield "int4, absmax", changed(int4, {}, Search.ABSMAX)
    for block in (128, 32):
        yield f"int4, blocks of {block}", changed(int4, dict.fromkeys(big, f"int4-b{block}"))
        yield f"int4, blocks of {block}, absmax", changed(int4, dict.fromkeys(big, f"int4-b{block}"), Search.ABSMAX)
    for role, encoding in ((Role.HEAD, "int4"), (Role.EMBEDDING, "int4"), (Role.PLE, "int8"), (Role.ALTUP, "int4"),
                           (Role.SMALL, "int4")):  # fmt: skip
        if role in roles:
            yield f"int4, {role} {encoding}", changed(int4, {role: encoding})
    yield "int4, attention and ffn int2", changed(int4, dict.fromkeys(big, "int2"))
    for role in sorted(roles - {Role.NORM}):
        alone = replace(fp32, floor=int4.floor)
        yield f"fp32, {role} int8", changed(alone, {role: "int8"})
        yield f"fp32, {role} int4", changed(alone, {role: "int4"})
        yield f"fp32, {role} int4, absmax", changed(alone, {role: "int4"}, Search.ABSMAX)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("tokens_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=16384, show_default=True)
def main(checkpoint: Path, tokens_file: Path, tokens: int) -> None:
    """Print the table as Markdown."""
    ids = np.fromfile(tokens_file, np.uint16, tokens // WINDOW_TOKENS * WINDOW_TOKENS)
    windows = torch.from_numpy(ids.astype(np.int64)).reshape(-1, WINDOW_TOKENS)
    model = FakeQuantized(checkpoint)
    reference = list(model.log_probabilities(windows))
    click.echo(f"| {checkpoint.name}, {windows.numel()} tokens | MiB | KL, 1e-3 nats | top-1 |\n|---|---|---|---|")
    for name, recipe in variants({spec.role for spec in model.originals}):
        model.store(recipe)
        size = sum(recipe.encoding(spec).nbytes(spec.shape) for spec in model.originals) / 2**20
        quality = compare(model, reference, windows)
        click.echo(f"| {name} | {size:.2f} | {quality.kl * 1e3:.3f} | {quality.top1:.4f} |")
        if not name.startswith("fp32"):
            with model.int8_activations():
                quality = compare(model, reference, windows)
            click.echo(f"| + int8 activations | | {quality.kl * 1e3:.3f} | {quality.top1:.4f} |")


if __name__ == "__main__":
    main()
