"""config.json and generation_config.json of a GGUF: what its metadata says, and what follows where it says nothing.

llama.cpp writes what its own code reads and fixes the rest by architecture. What a model here needs besides is taken
from families.py, and hyperparameters.py writes what is read here:

- every 6th layer (3n: 5th) attends to all tokens where attention.sliding_window_pattern is absent (`swa_period`);
  without a window, all layers do
- sliding layers turn by 10,000 where rope.freq_base_swa is absent (`rope_freq_base_train_swa`); rope scaling is linear
  and of the other layers only
- queries are scaled by head_dim^-0.5, in the model of 62 layers by (width / heads)^-0.5 (`f_attention_scale`)
- the head is the embedding where there is no output.weight
- Gemma 3n caps logits at 30 (`f_final_logit_softcapping`), shares KV from layer 20 on (`n_layer_kv_from_start`) where
  attention.shared_kv_layers is absent; Gemma 3 caps none
- Gemma 3n's coefficients are clipped at 120 by transformers' Gemma3nTextConfig; llama.cpp has no key and does not clip
"""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from gemma_edge.converter.checkpoint.gguf.families import (
    COEFFICIENT_CLIP,
    FAMILIES,
    LAYERS_OF_27B,
    LOCAL_ROPE_BASE,
)
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo
from gemma_edge.converter.models import gemma3
from gemma_edge.converter.models.fields import LARGEST_REPEAT, LAYER_KINDS

ARCHITECTURES: Final = tuple(FAMILIES)

# Behind these, a key that is not known may change what the model computes. Elsewhere are descriptions.
_ARITHMETIC: Final = ("attention.", "rope.", "altup.", "expert", "attn_", "activation_", "final_", "feed_forward")
_KNOWN: Final = frozenset(
    (
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.sliding_window_pattern",
        "attention.shared_kv_layers", "attention.causal", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.type",
        "rope.dimension_count", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
        "altup.active_idx", "altup.num_inputs", "activation_sparsity_scale", "feed_forward_length",
        "final_logit_softcapping", "attn_logit_softcapping",
    )
)  # fmt: skip


def derived_config(file: Path, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """config.json of the text model. tensors: by Hugging Face's names; a few numbers are only in their shapes.

    Raises CheckpointError naming the key that is missing, or that says what no model here computes.
    """
    architecture = metadata["general.architecture"]
    keys = _Keys(file, metadata, architecture)
    keys.check_known()
    layers = keys.integer("block_count", most=LARGEST_REPEAT)
    heads, head_size = keys.integer("attention.head_count"), keys.integer("attention.key_length")
    if keys.integer("attention.value_length", head_size) != head_size:
        raise keys.refusal("attention.value_length", f"{head_size}, as attention.key_length")
    if keys.integer("rope.dimension_count", head_size) != head_size:
        raise keys.refusal("rope.dimension_count", f"{head_size}, as attention.key_length")
    if keys.get("attention.causal", True) is not True:
        raise keys.refusal("attention.causal", "true")
    width, window = keys.integer("embedding_length"), keys.integer("attention.sliding_window", 0)
    config = {
        "model_type": f"{architecture}_text",
        "architectures": [FAMILIES[architecture].hugging_face],
        "vocab_size": _rows(file, tensors, "model.embed_tokens.weight"),
        "hidden_size": width,
        "intermediate_size": keys.integers("feed_forward_length", layers),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base"),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", LOCAL_ROPE_BASE),
        "rope_scaling": _rope_scaling(keys),
        "layer_types": _layer_types(keys, layers, window),
        "attention_bias": False,
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 0.0) or None,
        "final_logit_softcapping": keys.number("final_logit_softcapping", FAMILIES[architecture].logit_cap or 0.0)
        or None,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if window:
        config["sliding_window"] = window
    if architecture == gemma3.FAMILY:
        config["intermediate_size"] = keys.integer("feed_forward_length")
        config["query_pre_attn_scalar"] = width // heads if layers == LAYERS_OF_27B else head_size
        return config
    return config | _gemma3n(keys, layers, file, tensors)


def _gemma3n(keys: "_Keys", layers: int, file: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    first_shared = FAMILIES[keys.architecture].first_shared_layer or layers
    return {
        "vocab_size_per_layer_input": _rows(file, tensors, "model.embed_tokens_per_layer.weight"),
        "hidden_size_per_layer_input": keys.integer("embedding_length_per_layer_input"),
        "num_kv_shared_layers": keys.count("attention.shared_kv_layers", max(0, layers - first_shared)),
        "activation_sparsity_pattern": [_share(scale) for scale in keys.scales("activation_sparsity_scale", layers)],
        "altup_num_inputs": keys.integer("altup.num_inputs"),
        "altup_active_idx": keys.count("altup.active_idx"),
        "altup_coef_clip": COEFFICIENT_CLIP,
        "altup_correct_scale": True,
        "laurel_rank": _rows(file, tensors, "model.layers.0.laurel.linear_left.weight"),
    }


def derived_generation(file: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the tokens that end a text, and what the file says of sampling (general.sampling.*).

    Raises CheckpointError for a value that cannot be.
    """
    keys = _Keys(file, metadata, "")
    ends = [keys.count(f"tokenizer.ggml.{name}_token_id", -1) for name in ("eos", "eot", "eom")]
    values: dict[str, Any] = {"eos_token_id": sorted({end for end in ends if end >= 0})}
    if "general.sampling.top_k" in metadata:
        values["top_k"] = keys.integer("general.sampling.top_k")
    for key, name in (("general.sampling.top_p", "top_p"), ("general.sampling.temp", "temperature")):
        if key in metadata:
            values[name] = keys.number(key)
    return values


def _rows(file: Path, tensors: Mapping[str, TensorInfo], name: str) -> int:
    if name not in tensors:
        raise CheckpointError(f"{file}: {name.removeprefix('model.')} is missing; the file is incomplete")
    return tensors[name].shape[0]


def _rope_scaling(keys: "_Keys") -> dict[str, Any] | None:
    factor = keys.number("rope.scaling.factor", 1.0)
    kind = keys.text("rope.scaling.type", "linear")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind != "linear":
        raise keys.refusal("rope.scaling.type", "'linear' or 'none'")
    return {"rope_type": "linear", "factor": factor}


def _layer_types(keys: "_Keys", layers: int, window: int) -> list[str]:
    """The kind of each layer: llama.cpp's set_swa_pattern, or one boolean for each, true where it slides."""
    pattern = keys.get("attention.sliding_window_pattern", FAMILIES[keys.architecture].period)
    if not window:
        return [LAYER_KINDS[1]] * layers
    if type(pattern) is int and pattern >= 0:
        return [LAYER_KINDS[pattern > 0 and i % pattern == pattern - 1] for i in range(layers)]
    if isinstance(pattern, list) and len(pattern) >= layers and all(slides in (0, 1) for slides in pattern):
        return [LAYER_KINDS[not slides] for slides in pattern[:layers]]
    raise keys.refusal("attention.sliding_window_pattern", f"a period, or true or false for each of {layers} layers")


def _share(scale: float) -> float:
    """The share of activations that is cut, from the quantile of a normal distribution that llama.cpp writes.

    It goes through float32, so the share is taken for the one of at most four digits that gives the same quantile.
    """
    normal = NormalDist()
    share = normal.cdf(scale)
    rounded = round(share, 4)
    is_near = 0 < rounded < 1 and math.isclose(normal.inv_cdf(rounded), scale, rel_tol=1e-6, abs_tol=1e-6)
    return rounded if is_near or share == rounded else share


class _Keys:
    """The metadata below one architecture's name, or all of it for "". Every getter raises CheckpointError."""

    def __init__(self, file: Path, metadata: Mapping[str, Any], architecture: str) -> None:
        self._file = file
        self._metadata = metadata
        self.architecture = architecture

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where there is none."""
        return self._metadata.get(self._full(key), default)

    def integer(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """An integer from 1 to `most`, or the default; a list of equal ones stands for one."""
        value = self._required(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if value == default and default is not None:
            return default
        if type(value) is not int or not 1 <= value <= most:
            raise self.refusal(key, f"an integer from 1 to {most}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """An integer of at least 0, or the default."""
        value = self._required(key, default)
        if type(value) is not int or (not 0 <= value < 2**31 and value != default):
            raise self.refusal(key, "an integer of at least 0")
        return value

    def integers(self, key: str, layers: int) -> list[int]:
        """A positive integer for each layer; one stands for all."""
        value = self._required(key)
        items = value if isinstance(value, list) else [value] * layers
        if len(items) != layers or not all(type(item) is int and 0 < item < 2**31 for item in items):
            raise self.refusal(key, f"a positive integer, or one for each of {layers} layers")
        return items

    def number(self, key: str, default: float | None = None) -> float:
        """A number of at least 0, as short as float32 allows: 1e-06 and not 9.999999974752427e-07."""
        value = self._required(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise self.refusal(key, "a number of at least 0")
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def scales(self, key: str, layers: int) -> list[float]:
        """A number for each layer, minus infinity among them."""
        value = self._required(key)
        if not isinstance(value, list) or len(value) != layers or not all(_is_scale(item) for item in value):
            raise self.refusal(key, f"a number for each of {layers} layers")
        return [float(item) for item in value]

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "a text")
        return value

    def check_known(self) -> None:
        """Refuse what may change the arithmetic in a way that is not known here."""
        prefix = f"{self.architecture}."
        for key in self._metadata:
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name.startswith(_ARITHMETIC) and name not in _KNOWN:
                raise CheckpointError(
                    f"{self._file}: {key} is {str(self._metadata[key])[:40]}, which no model here knows; "
                    "convert the original safetensors checkpoint"
                )

    def refusal(self, key: str, expected: str) -> CheckpointError:
        """That a value is not what it should be."""
        value = str(self.get(key))[:60]
        return CheckpointError(f"{self._file}: {self._full(key)} is {value}, expected {expected}; correct the file")

    def _full(self, key: str) -> str:
        return f"{self.architecture}.{key}" if self.architecture else key

    def _required(self, key: str, default: Any = None) -> Any:
        value = self.get(key, default)
        if value is None:
            raise CheckpointError(
                f"{self._file}: has no {self._full(key)}, which the model's config.json follows from; "
                "convert the model anew with llama.cpp"
            )
        return value


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value < math.inf  # NaN is not
