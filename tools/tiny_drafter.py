"""Tiny random assistants of a tiny Gemma 4 (tools/tiny.py), in Hugging Face format.

    python -m tools.tiny_drafter NAME DIRECTORY [--seed 0]

NAME: of the Gemma 4 it guesses for. Its layers read that model's keys and values, so nothing of a size is free but its
own width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from safetensors.torch import save_file

from tools.tiny import TINY, Tiny, random_values, stored, write_json

WIDTH, LAYERS = 64, ("sliding_attention", "sliding_attention", "full_attention")


def write_drafter(
    name: str,
    directory: Path,
    seed: int = 0,
    echoed: torch.Tensor | None = None,
    clusters: tuple[int, int] | None = None,
    **changes: Any,
) -> transformers.PreTrainedModel:
    """Write the assistant; returns it as transformers computes it, in float32. changes: of its text_config.

    echoed: the model's table of embeddings [V, D]; the assistant then guesses the last token again, as random models
    are wont to say, and its layers hardly matter. clusters: of its tokens, how many there are and how many count.
    """
    target = TINY[name].config
    kept = ("vocab_size", "num_key_value_heads", "head_dim", "global_head_dim", "sliding_window", "rope_parameters")
    text = {key: target[key] for key in kept if key in target} | {
        "model_type": "gemma4_text", "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": len(LAYERS),
        "num_kv_shared_layers": len(LAYERS), "layer_types": list(LAYERS), "num_attention_heads": 4,
        "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "max_position_embeddings": 2048,
        "use_double_wide_mlp": False,
    }  # fmt: skip
    text |= changes | ({} if echoed is None else {"hidden_size": target["hidden_size"]})
    settings: dict[str, Any] = {"text_config": text, "backbone_hidden_size": target["hidden_size"]}
    if clusters is not None:
        settings |= {"use_ordered_embeddings": True, "num_centroids": clusters[0]}
        settings |= {"centroid_intermediate_top_k": clusters[1]}
    config = transformers.Gemma4AssistantConfig(**settings, attn_implementation="eager")
    with _all_shared():
        model = transformers.Gemma4AssistantForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in stored(model).items():
            parameter.copy_(random_values(parameter_name, parameter.shape, Tiny(text), generator))
            if echoed is not None and ".post_" in parameter_name:
                parameter.mul_(0.01)
        if clusters is not None:
            model.masked_embedding.token_ordering.copy_(torch.randperm(text["vocab_size"], generator=generator))
        if echoed is not None:
            model.model.embed_tokens.weight.copy_(echoed)
            model.pre_projection.weight.copy_(torch.eye(echoed.shape[1], 2 * echoed.shape[1]))
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config.to_dict() | {"architectures": ["Gemma4AssistantForCausalLM"]})
    order = {} if clusters is None else {"masked_embedding.token_ordering": model.masked_embedding.token_ordering}
    save_file({**stored(model), **order}, directory / "model.safetensors")
    return model


@contextmanager
def _all_shared() -> Iterator[None]:
    """transformers 5.23.0 looks for a layer that owns keys and values, and refuses every assistant, which has none."""
    config_class = transformers.Gemma4TextConfig
    modes = config_class.kv_sharing_modes
    config_class.kv_sharing_modes = property(lambda config: ["reuse"] * config.num_hidden_layers)
    try:
        yield
    finally:
        config_class.kv_sharing_modes = modes


@click.command()
@click.argument("name", type=click.Choice([name for name in TINY if name.startswith("gemma4")]))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(name: str, directory: Path, seed: int) -> None:
    """Write a tiny random assistant."""
    write_drafter(name, directory, seed)


if __name__ == "__main__":
    main()
