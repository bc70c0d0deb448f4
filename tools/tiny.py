"""Tiny random checkpoints in Hugging Face format, for parity tests against transformers.

    python -m tools.tiny NAME DIRECTORY [--seed 0]

transformers initialises norms to one, AltUp's output scale to zero and everything else to 0.02 noise, which would hide
most mistakes of a converter. Here every tensor gets values that matter: a test changes each and sees the logits move.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards

TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-gemma3"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
TOKENIZER_VOCAB = 2048
GENERATION_CONFIG = {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}

S, F = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Tiny:
    """One random checkpoint: a transformers text config, and how it is stored.

    prefix: of the decoder's names. "model.language_model." wraps config.json as the multimodal checkpoints do.
    dtype: "F32" or "BF16".
    old_spelling: config.json as transformers 4 wrote it (rope_theta, rope_local_base_freq, no rope_parameters); of a
        Gemma 4, as it was published (global_head_dim, no per_layer_config).
    gain: of what each layer of a Gemma 3n or 4 adds, and of how a 3n mixes streams.
    """

    config: Mapping[str, Any]
    prefix: str = "model."
    dtype: str = "F32"
    shards: int = 1
    old_spelling: bool = False
    gain: float = 1.0

    @property
    def family(self) -> str:
        """What transformers' classes begin with."""
        return {"gemma3_text": "Gemma3", "gemma3n_text": "Gemma3n", "gemma4_text": "Gemma4"}[self.config["model_type"]]

    @property
    def is_3n(self) -> bool:
        return self.family == "Gemma3n"

    @property
    def is_gemma3(self) -> bool:
        """Norms hold w-1, and attention has a scale of its own; in later families neither."""
        return self.family == "Gemma3"


def _gemma3(**changes: Any) -> dict[str, Any]:
    """Gemma 3 text: 4 query heads on 1 KV head, 5 sliding layers to 1 full one, tied head."""
    return {
        "model_type": "gemma3_text", "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
        "query_pre_attn_scalar": 32, "sliding_window": 16, "max_position_embeddings": 512,
        "layer_types": [S, S, S, S, S, F], "tie_word_embeddings": True,
    } | changes  # fmt: skip


def gemma3n_config(**changes: Any) -> dict[str, Any]:
    """Gemma 3n text: 4 query heads on 2 KV heads, 2 of 6 layers share KV, 2 sparse layers, vocabulary above PLE's."""
    return {
        "model_type": "gemma3n_text", "vocab_size": 2112, "vocab_size_per_layer_input": 2048, "hidden_size": 64,
        "hidden_size_per_layer_input": 32, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "num_kv_shared_layers": 2, "laurel_rank": 32, "sliding_window": 16,
        "max_position_embeddings": 512, "layer_types": [S, S, F, S, S, F], "tie_word_embeddings": True,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
    } | changes  # fmt: skip


def _gemma4(**changes: Any) -> dict[str, Any]:
    """Gemma 4 text: 4 query heads on 1 KV head, wider where attention is full, 2 of 6 layers share KV and are wide."""
    return {
        "model_type": "gemma4_text", "vocab_size": 2048, "vocab_size_per_layer_input": 2048, "hidden_size": 96,
        "hidden_size_per_layer_input": 32, "intermediate_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 32, "global_head_dim": 64, "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True, "sliding_window": 16, "max_position_embeddings": 2048,
        "layer_types": [S, S, F, S, S, F], "tie_word_embeddings": True, "final_logit_softcapping": 30.0,
    } | changes  # fmt: skip


TINY: Mapping[str, Tiny] = {
    "gemma3-pattern": Tiny(_gemma3()),
    "gemma3-untied": Tiny(
        _gemma3(
            vocab_size=2112,
            hidden_size=96,
            num_hidden_layers=5,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=64,
            query_pre_attn_scalar=24,
            sliding_window=24,
            layer_types=[F, S, S, F, S],
            tie_word_embeddings=False,
            final_logit_softcapping=20.0,
        )
    ),
    "gemma3-old-bf16-shards": Tiny(
        _gemma3(
            hidden_size=128,
            num_hidden_layers=7,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=32,
            layer_types=[S, S, S, S, S, F, S],
            rope_parameters={
                S: {"rope_type": "default", "rope_theta": 5_000.0},
                F: {"rope_type": "default", "rope_theta": 200_000.0},
            },
        ),
        dtype="BF16",
        shards=3,
        old_spelling=True,
    ),
    "gemma3-linear-rope": Tiny(
        _gemma3(
            num_hidden_layers=4,
            num_key_value_heads=4,
            layer_types=[S, F, S, F],
            rope_parameters={
                S: {"rope_type": "default", "rope_theta": 10_000.0},
                F: {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
            },
        ),
        prefix="language_model.model.",
    ),
    "gemma3n-pattern": Tiny(
        gemma3n_config(
            num_hidden_layers=10,
            num_kv_shared_layers=4,
            layer_types=[S, S, S, S, F, S, S, S, S, F],
            activation_sparsity_pattern=[0.95] * 3 + [0.0] * 7,
        )
    ),
    "gemma3n-small-vocab-untied": Tiny(
        gemma3n_config(
            vocab_size=2048,
            vocab_size_per_layer_input=2176,
            hidden_size=96,
            hidden_size_per_layer_input=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            num_kv_shared_layers=1,
            layer_types=[F, S, F, S],
            sliding_window=24,
            activation_sparsity_pattern=[0.5, 0.0, 0.9, 0.95],
            tie_word_embeddings=False,
            final_logit_softcapping=15.0,
        )
    ),
    "gemma3n-no-sharing-altup3": Tiny(
        gemma3n_config(
            num_hidden_layers=4,
            num_kv_shared_layers=0,
            layer_types=[S, S, S, F],
            altup_num_inputs=3,
            activation_sparsity_pattern=[0.0] * 4,
            hidden_size=128,
            num_key_value_heads=4,
            laurel_rank=64,
            tie_word_embeddings=False,  # tied, this small stream would echo one token
        )
    ),
    "gemma3n-multimodal-bf16-shards": Tiny(
        gemma3n_config(
            intermediate_size=[512, 384, 256, 192, 320, 256],
            num_kv_shared_layers=3,
            layer_types=[S, F, S, S, F, S],
            tie_word_embeddings=False,
        ),
        prefix="model.language_model.",
        dtype="BF16",
        shards=2,
        old_spelling=True,
    ),
    "gemma4-e2b-pattern": Tiny(  # a donor of each kind, just before those that share
        _gemma4(num_hidden_layers=8, num_kv_shared_layers=4, layer_types=[S, S, S, F] * 2)
    ),
    "gemma4-e4b-multimodal-bf16-shards": Tiny(  # every width is the same, several KV heads
        _gemma4(
            num_kv_shared_layers=3,
            num_key_value_heads=2,
            use_double_wide_mlp=False,
        ),
        prefix="model.language_model.",
        dtype="BF16",
        shards=2,
        old_spelling=True,
    ),
    "gemma4-no-ple-untied": Tiny(  # nor sharing, nor soft-cap, nor wider heads
        _gemma4(
            num_hidden_layers=4,
            num_kv_shared_layers=0,
            layer_types=[S, F, S, F],
            hidden_size_per_layer_input=0,
            global_head_dim=32,
            num_attention_heads=2,
            sliding_window=24,
            tie_word_embeddings=False,
            final_logit_softcapping=None,
        )
    ),
    "gemma4-other-rope": Tiny(  # a share that is no whole number of pairs; the donor of full layers is the first layer
        _gemma4(
            num_hidden_layers=5,
            num_kv_shared_layers=3,
            layer_types=[F, S, S, S, F],
            head_dim=64,
            tie_word_embeddings=False,
            rope_parameters={
                S: {"rope_type": "proportional", "rope_theta": 5_000.0, "partial_rotary_factor": 0.49},
                F: {"rope_type": "proportional", "rope_theta": 200_000.0, "partial_rotary_factor": 0.5, "factor": 4.0},
            },
        )
    ),
    "gemma4-ple-unshared-kv": Tiny(
        _gemma4(
            vocab_size_per_layer_input=2176,
            hidden_size=160,
            hidden_size_per_layer_input=64,
            num_hidden_layers=3,
            num_kv_shared_layers=0,
            num_attention_heads=2,
            num_key_value_heads=2,
            global_head_dim=128,
            layer_types=[S, S, F],
            tie_word_embeddings=False,
            final_logit_softcapping=15.0,
        )
    ),
}


E4B_SHAPED = Tiny(
    gemma3n_config(
        intermediate_size=128,
        num_hidden_layers=35,
        num_kv_shared_layers=15,
        layer_types=[S, S, S, S, F] * 7,
        activation_sparsity_pattern=[0.95] * 10 + [0.0] * 25,
    ),
    gain=0.3,  # 35 random layers make noise grow: with 1, numpy in float32 is off by 0.07 at some tokens
)
"""Layers as in Gemma 3n E4B, for slices of it."""


def write_tiny(which: str | Tiny, directory: Path, seed: int = 0) -> transformers.PreTrainedModel:
    """Write a checkpoint, or TINY of that name, with the tiny tokenizer into `directory`.

    Returns the transformers model that holds exactly the stored values, in float32 and eval mode: the reference.
    """
    tiny = which if isinstance(which, Tiny) else TINY[which]
    directory.mkdir(parents=True, exist_ok=True)
    model = build(tiny, seed)
    parameters = {_stored_name(name, tiny.prefix): tensor for name, tensor in stored(model).items()}
    write_json(directory / "config.json", config_json(tiny, model.config))
    write_json(directory / "generation_config.json", GENERATION_CONFIG)
    for file_name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / file_name, directory / file_name)
    write_parameters(directory, parameters, tiny.dtype, tiny.shards)
    return model


def stored(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters, and Gemma 4's scalars, which transformers keeps as buffers."""
    scalars = {name: buffer for name, buffer in model.named_buffers() if name.endswith("layer_scalar")}
    return dict(model.named_parameters()) | scalars


def write_parameters(directory: Path, parameters: Mapping[str, torch.Tensor], dtype: str, shards: int) -> None:
    """Tensors by their stored names; a tied head is not among them. dtype: "F32" or "BF16"."""

    def values(name: str) -> Iterator[bytes]:
        tensor = parameters[name].detach()
        yield (tensor if dtype == "F32" else tensor.bfloat16().view(torch.int16)).numpy().tobytes()

    write_shards(directory, {name: Header(dtype, tuple(t.shape)) for name, t in parameters.items()}, values, shards)


def build(tiny: Tiny, seed: int) -> transformers.PreTrainedModel:
    """The transformers model with random values that all matter, rounded to the stored dtype, kept in float32."""
    config_class = getattr(transformers, f"{tiny.family}TextConfig")
    model_class = getattr(transformers, f"{tiny.family}ForCausalLM")
    settings = {key: value for key, value in tiny.config.items() if key != "model_type"}
    model = model_class(config_class(**settings, attn_implementation="eager")).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in stored(model).items():
            parameter.copy_(random_values(name, parameter.shape, tiny, generator))
            if tiny.dtype == "BF16":
                parameter.copy_(parameter.bfloat16().float())
    return model


def random_values(name: str, shape: torch.Size, tiny: Tiny, generator: torch.Generator) -> torch.Tensor:
    """For a parameter of the text-only model ("model.norm.weight", "lm_head.weight")."""
    noise = torch.randn(shape, generator=generator)
    hidden_size = tiny.config["hidden_size"]
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 0.25 * noise / math.sqrt(hidden_size)  # small beside what the layers add: a tied head must not echo
    if name == "model.norm.weight":
        return 12.0 + noise  # with the small head, spreads the logits over about +-12
    if not tiny.is_gemma3 and ".post_" in name:
        # What each layer adds is small beside what the stream holds, as in trained models. With a mean of 1 every layer
        # more than doubles a perturbation, and transformers' own float32 ends 3e-3 away from float64.
        return tiny.gain * (0.6 + 0.3 * noise) / math.sqrt(tiny.config["num_hidden_layers"])
    if not tiny.is_gemma3 and name.endswith(("q_norm.weight", "k_norm.weight")):
        return (1.0 + 0.3 * noise) * shape[0] ** -0.25  # no attention scale: these norms hold head_dim^-0.5
    if name.endswith("layer_scalar"):
        return 0.9 + 0.1 * noise
    if name.endswith("norm.weight"):
        mean = 0.0 if tiny.is_gemma3 else 1.0  # Gemma 3 stores w-1
        return mean + 0.3 * noise
    if name.endswith("correct_output_scale"):
        return 1.0 + 0.3 * noise
    if name.endswith("_coefs.weight"):
        return 0.3 * tiny.gain * noise
    if name.endswith("modality_router.weight"):
        return noise * math.sqrt(hidden_size)  # its input is a unit-RMS vector divided by hidden_size
    if name.endswith("embed_tokens_per_layer.weight"):
        return noise / math.sqrt(tiny.config["hidden_size_per_layer_input"])  # the lookup multiplies by that root
    return noise / math.sqrt(shape[-1])  # keeps the size of a unit-RMS input


def _stored_name(name: str, prefix: str) -> str:
    """The name in the file, for a name of the text-only model ("model.norm.weight", "lm_head.weight")."""
    if name.startswith("model."):
        return prefix + name.removeprefix("model.")
    return "language_model." + name if prefix == "language_model.model." else name


def config_json(tiny: Tiny, config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """config.json as the hub has it for this prefix and spelling."""
    text: dict[str, Any] = config.to_dict() | {"dtype": {"F32": "float32", "BF16": "bfloat16"}[tiny.dtype]}
    family = tiny.family
    if tiny.old_spelling and family == "Gemma4":
        text.pop("per_layer_config", None)
        text["global_head_dim"] = tiny.config["global_head_dim"]
    elif tiny.old_spelling:
        rope = text.pop("rope_parameters")
        text |= {"rope_theta": rope[F]["rope_theta"], "rope_local_base_freq": rope[S]["rope_theta"]}
        text |= {"rope_scaling": None, "torch_dtype": text.pop("dtype")}
        if tiny.is_gemma3:  # it stored a period instead of a list of layer types
            text["sliding_window_pattern"] = text.pop("layer_types").index(F) + 1
            text.pop("_sliding_window_pattern")
    if tiny.prefix == "model.":
        return text | {"architectures": [f"{family}ForCausalLM"]}
    return {
        "architectures": [f"{family}ForConditionalGeneration"],
        "model_type": family.lower(),
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, keys in order."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


@click.command()
@click.argument("name", type=click.Choice(list(TINY)))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(name: str, directory: Path, seed: int) -> None:
    """Write a tiny random checkpoint."""
    write_tiny(name, directory, seed)


if __name__ == "__main__":
    main()
