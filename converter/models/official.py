"""The models Google publishes: what their config.json says, as far as it differs from their family's defaults.

With these a model that is not on disk can be planned: a smaller one to suggest, or one that is yet to be downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_edge.converter.models import gemma3n, gemma4
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.models.matformer.slices import Slice


@dataclass(frozen=True)
class Official:
    """repository: on the hub. text: what its config.json says of the decoder."""

    repository: str
    text: Mapping[str, Any]


_GEMMA4: Mapping[str, Any] = {
    "model_type": "gemma4_text", "num_attention_heads": 8, "head_dim": 256, "global_head_dim": 512,
    "sliding_window": 512, "hidden_size_per_layer_input": 256, "final_logit_softcapping": 30.0,
}  # fmt: skip
"""What both sizes say (transformers models/gemma4/convert_gemma4_weights.py)."""

OFFICIAL: Mapping[str, Official] = {
    "gemma4-e4b": Official("google/gemma-4-E4B-it", {
        **_GEMMA4, "num_hidden_layers": 42,
        "num_kv_shared_layers": 18, "hidden_size": 2560, "intermediate_size": 10_240,
        "num_key_value_heads": 2,
    }),
    "gemma4-e2b": Official("google/gemma-4-E2B-it", {
        **_GEMMA4, "num_hidden_layers": 35, "num_kv_shared_layers": 20, "hidden_size": 1536, "intermediate_size": 6144,
        "num_key_value_heads": 1, "use_double_wide_mlp": True,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
    }),
    "e4b": Official("google/gemma-3n-E4B-it", {
        "model_type": "gemma3n_text", "num_hidden_layers": 35, "num_kv_shared_layers": 15, "intermediate_size": 16384,
    }),
    "e2b": Official("google/gemma-3n-E2B-it", {
        "model_type": "gemma3n_text", "num_hidden_layers": 30, "num_kv_shared_layers": 10, "intermediate_size": 8192,
    }),
    "1b": Official("google/gemma-3-1b-it", {
        "model_type": "gemma3_text", "num_hidden_layers": 26, "hidden_size": 1152, "intermediate_size": 6912,
        "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 512, "vocab_size": 262_144,
        "max_position_embeddings": 32_768,
    }),
}  # fmt: skip
"""By size, of each family the largest first: the one table of them."""


def official_model(size: str, cut: Slice | None = None) -> Model:
    """The model of a key of OFFICIAL, with the encoders that its family has, by the numbers that are their defaults.

    cut: what is kept of it. Raises SliceError where it cannot be cut so.
    """
    text = OFFICIAL[size].text if cut is None else cut.config(OFFICIAL[size].text)
    family = _FAMILIES.get(text["model_type"])
    if family is None:
        return Model.from_json(text)
    whole = {"model_type": family, "text_config": text, "vision_config": _VISION[family], "audio_config": {}}
    return Model.of_checkpoint(whole, MediaSettings())


_FAMILIES: Mapping[str, str] = {"gemma3n_text": gemma3n.FAMILY, "gemma4_text": gemma4.FAMILY}
_VISION: Mapping[str, Mapping[str, Any]] = {gemma3n.FAMILY: {}, gemma4.FAMILY: {"use_clipped_linears": True}}
