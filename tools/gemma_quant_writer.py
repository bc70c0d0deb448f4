"""Write a tiny checkpoint as transformers' quantizer "gemma" has it, by transformers' own layers and writer.

Bits are of the kind of Google's checkpoints for phones: 4 for attention and for the first layers' feed-forward, 2 for
that of the others, 8 for what reads per-layer embeddings, 8 and 2 for tables.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.integrations.gemma_quant import (
    QuantizedEmbedding,
    QuantizedLinear,
    apply_srq,
    replace_with_quant_layers,
)
from transformers.utils.quantization_config import GemmaQuantizationConfig

from tools.tiny import GENERATION_CONFIG, TINY, TOKENIZER, TOKENIZER_FILES, build, write_json

_CALIBRATION_TOKENS = 64


def write_gemma_quant(name: str, directory: Path, *, is_static: bool) -> transformers.PreTrainedModel:
    """The checkpoint TINY of that name with codes over the whole range, untied, and the model that it was saved from.

    is_static: whether layers have scales of inputs and outputs, taken from a run over random tokens.
    """
    tiny = replace(TINY[name], config={**TINY[name].config, "tie_word_embeddings": False})
    model = build(tiny, 0)
    middle = tiny.config["num_hidden_layers"] // 2
    wide = "|".join(str(layer) for layer in range(middle, tiny.config["num_hidden_layers"]))
    patterns: dict[str, dict[str, Any]] = {
        rf"layers\.({wide})\.mlp": {"num_bits": 2},
        "embed_tokens$": {"num_bits": 8},
        "embed_tokens_per_layer": {"num_bits": 2},
        "per_layer": {"num_bits": 8},
    }
    settings = GemmaQuantizationConfig(4, True, patterns, [])
    generator = torch.Generator().manual_seed(1)
    sizes = {key: parameter.detach().square().mean().sqrt() for key, parameter in model.named_parameters()}
    replace_with_quant_layers(model, settings, [])
    for key, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            fill(module.weight, module.weight_scale, module.num_bits, sizes[f"{key}.weight"], generator)
        elif isinstance(module, QuantizedEmbedding):
            size = sizes[f"{key}.weight"]
            fill(module.embedding_quantized, module.embedding_scale, module.num_bits, size, generator)
    if is_static:
        _set_scales(model, generator)
    model.config.quantization_config = settings
    model.save_pretrained(directory)
    write_json(directory / "generation_config.json", GENERATION_CONFIG)
    for file_name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / file_name, directory / file_name)
    return model


def fill(codes: Any, scale: Any, bits: int, size: torch.Tensor, generator: torch.Generator) -> None:
    """Random bytes, and scales with which the matrix has about `size` as its root mean square."""
    low, high = (-128, 128) if codes.dtype is torch.int8 else (0, 256)
    codes.copy_(torch.randint(low, high, codes.shape, generator=generator))
    spread = (4**bits / 12) ** 0.5  # of evenly distributed codes
    scale.copy_(size / spread * (0.8 + 0.4 * torch.rand(scale.shape, generator=generator)))


def _set_scales(model: transformers.PreTrainedModel, generator: torch.Generator) -> None:
    """Of each layer in turn, from what it is given by those before, which have theirs."""

    def measure(layer: QuantizedLinear, inputs: tuple[torch.Tensor]) -> None:
        [x] = inputs
        layer.input_activation_scale.copy_(x.abs().max() / 100)  # some values are clipped in other runs
        out = torch.nn.functional.linear(apply_srq(x, layer.input_activation_scale), layer._dequantize_weights(x.dtype))
        layer.output_activation_scale.copy_(out.abs().max() / 100)

    hooks = [m.register_forward_pre_hook(measure) for m in model.modules() if isinstance(m, QuantizedLinear)]
    ids = torch.randint(model.config.vocab_size, (1, _CALIBRATION_TOKENS), generator=generator)
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
