"""llama.cpp's tensors and those of a Hugging Face checkpoint: names, and where the two hold other values.

Names: gguf-py constants.py, TENSOR_NAMES. Values (conversion/gemma.py):
- Gemma 3's norms are stored with the 1 that Hugging Face's layout lacks (`norm_shift`); Gemma 3n's are equal in both.
- Gemma 3n's AltUp matrices are stacked: [N-1, D, D] of altup_proj are altup_projections.0 to N-2.
- Rows of the vocabulary that no token names are cut off (`remove OOV rows in token_embd`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from gemma_edge.converter.checkpoint.gguf.families import FAMILIES
from gemma_edge.converter.checkpoint.gguf.file import GgufTensor
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo

PREFIX: Final = "model."
_HEAD: Final = ("output.weight", "lm_head.weight")

_MODEL: Final[Mapping[str, str]] = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}
_STACKS: Final[Mapping[str, str]] = {
    "altup_proj.weight": "altup_projections",
    "altup_unembd_proj.weight": "altup_unembed_projections",
}
_LAYER: Final[Mapping[str, str]] = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    # Gemma 3n
    "altup_correct_coef.weight": "altup.correction_coefs.weight",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef.weight": "altup.prediction_coefs.weight",
    "altup_router.weight": "altup.modality_router.weight",
    "altup_router_norm.weight": "altup.router_norm.weight",
    "laurel_l.weight": "laurel.linear_left.weight",
    "laurel_r.weight": "laurel.linear_right.weight",
    "laurel_post_norm.weight": "laurel.post_laurel_norm.weight",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
}
_IN_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>.+)")

_MODEL_PARTS: Final = {source: name for name, source in _MODEL.items()}
_STACKED: Final = {source: name for name, source in _STACKS.items()}
_LAYER_PARTS: Final = {source: name for name, source in _LAYER.items()}
_HF_LAYER = re.compile(r"layers\.(?P<layer>\d+)\.(?P<part>.+)")
_IN_STACK = re.compile(rf"(?P<stack>{'|'.join(_STACKED)})\.(?P<index>\d+)\.weight")


def renamed(tensors: Iterable[tuple[Path, GgufTensor]], architecture: str) -> dict[str, TensorInfo]:
    """The tensors of a GGUF, each with the file it lies in, by Hugging Face's names.

    Raises CheckpointError, by llama.cpp's name, for one that no architecture of ours has.
    """
    shift = -FAMILIES[architecture].norm_offset
    found: dict[str, TensorInfo] = {}
    for file, tensor in tensors:
        for info in _infos(file, tensor):
            is_norm = len(info.shape) == 1 and info.name.endswith("norm.weight")
            found[info.name] = replace(info, shift=shift) if is_norm else info
    return found


def gguf_name(source: str) -> tuple[str, int | None]:
    """llama.cpp's name of a tensor, and its place in a stack of matrices that share it, if it lies in one.

    source: the Hugging Face name without the checkpoint's prefix. Raises KeyError for one that is in neither table.
    """
    if source == _HEAD[1]:
        return _HEAD[0], None
    stacked = _IN_STACK.fullmatch(source)
    if stacked is not None:
        return _STACKED[stacked["stack"]], int(stacked["index"])
    layer = _HF_LAYER.fullmatch(source)
    if layer is not None:
        return f"blk.{layer['layer']}.{_LAYER_PARTS[layer['part']]}", None
    return _MODEL_PARTS[source], None


def _infos(file: Path, tensor: GgufTensor) -> Iterator[TensorInfo]:
    if tensor.name in _STACKS:
        if len(tensor.shape) != 3:
            raise CheckpointError(
                f"{file}: {tensor.name} has the shape {list(tensor.shape)}, expected a stack of matrices; "
                "convert the model anew with llama.cpp"
            )
        count, nbytes = tensor.shape[0], tensor.nbytes // tensor.shape[0]
        for k in range(count):
            name = f"{PREFIX}{_STACKS[tensor.name]}.{k}.weight"
            yield TensorInfo(name, tensor.type, tensor.shape[1:], file, tensor.offset + k * nbytes, nbytes)
        return
    yield TensorInfo(_name(file, tensor.name), tensor.type, tensor.shape, file, tensor.offset, tensor.nbytes)


def _name(file: Path, name: str) -> str:
    if name == _HEAD[0]:
        return _HEAD[1]
    if name in _MODEL:
        return PREFIX + _MODEL[name]
    layer = _IN_LAYER.fullmatch(name)
    if layer is not None and layer["part"] in _LAYER:
        return f"{PREFIX}layers.{int(layer['layer'])}.{_LAYER[layer['part']]}"
    raise CheckpointError(
        f"{file}: {name} is no tensor of a Gemma 3 or Gemma 3n text model as llama.cpp writes it; "
        "use a GGUF of the text model alone"
    )
