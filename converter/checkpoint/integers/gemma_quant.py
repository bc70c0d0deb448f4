"""Checkpoints that transformers' quantizer "gemma" reads, as tensors like others: integers of 2, 4 or 8 bits.

Of a linear layer such a checkpoint holds weight uint8 [N, K * bits / 8], where the lowest bits are the first column and
a code is stored as code + 2^(bits - 1), or int8 [N, K]; weight_scale float32 [N, 1]; and two numbers, the scales of the
int8 levels that its inputs and outputs were trained on. Of an embedding it holds embedding_quantized and
embedding_scale. Source: transformers integrations/gemma_quant.py.

How many bits a matrix has, config.json says with regular expressions. Its shape says it too, and cannot say otherwise.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from gemma_edge.converter.checkpoint import spelling
from gemma_edge.converter.checkpoint.safetensors_file import CheckpointError, TensorInfo, read_range
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.gemma4_encoders.settings import SOFT_TOKENS, MediaSettings
from gemma_edge.converter.tensors import StaticScales

METHOD: Final = "gemma"

_SETTINGS: Final = MediaSettings({"max_soft_tokens": SOFT_TOKENS[0]})  # no shape of a matrix follows from it

_SPELLINGS: Final = ((".weight", ".weight_scale"), (".embedding_quantized", ".embedding_scale"))
_STATIC: Final = (".input_activation_scale", ".output_activation_scale")


def unpacked(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """`tensors` with one for each quantized matrix, by its name in the model.

    Reads the scales of activations, two numbers a matrix. Raises CheckpointError: parts that do not belong to each
    other; ConfigError: a model that is not known.
    """
    found = dict(tensors)
    for base, shape in _matrices(config, spelling.decoder_prefix(tensors) or ""):
        for values, scale in _SPELLINGS:
            if base + values in tensors and base + scale in tensors:
                matrix = _matrix(f"{base}.weight", found.pop(base + values), found.pop(base + scale), shape)
                inputs, outputs = (_number(found.pop(base + end, None)) for end in _STATIC)
                static = StaticScales(inputs, outputs) if inputs or outputs else None
                found[matrix.name] = replace(matrix, static=static)
    return found


def _matrices(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What every matrix is called in the file, without an ending, and its shape."""
    text = config.get("text_config", config)
    model = Model.of_checkpoint(config, _SETTINGS) if text is not config and isinstance(text, Mapping) else None
    for encoder in () if model is None else model.encoders:
        for stored in (part for spec in encoder.tensors.values() for part in spec.stored):
            if len(stored.shape) == 2 and stored.source.startswith(encoder.prefixes):
                yield from (
                    (f"{place}{stored.source}".removesuffix(".weight"), stored.shape) for place in ("model.", "")
                )
    for spec in Model.from_json(text if isinstance(text, Mapping) else {}).tensors.values():
        if len(spec.shape) == 2 and spec.source.endswith(".weight"):
            names = spelling.HEAD_NAMES if spec.source in spelling.HEAD_NAMES else (prefix + spec.source,)
            yield from ((name.removesuffix(".weight"), spec.shape) for name in names)


def _matrix(name: str, stored: TensorInfo, scale: TensorInfo, shape: tuple[int, ...]) -> TensorInfo:
    rows, columns = shape
    widths = {("U8", columns / 4): 2, ("U8", columns / 2): 4, ("I8", columns): 8}
    bits = widths.get((stored.dtype, stored.shape[-1] if stored.shape else 0), 0)
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    is_whole = bits and stored.shape[:-1] == (rows,) and scale.dtype == "F32" and scale.shape[:1] == (rows,)
    if not is_whole or not groups or columns % groups:
        raise CheckpointError(
            f"{stored.file}: {stored.name} is {stored.dtype} of shape {list(stored.shape)} with {scale.dtype} scales "
            f"of {list(scale.shape)}, expected integers of 2, 4 or 8 bits of [{rows}, {columns}], in whole bytes, "
            "and F32 scales; download the checkpoint again"
        )
    return replace(stored, name=name, dtype=f"W{bits}A8", shape=shape, scales=scale)


def _number(scalar: TensorInfo | None) -> float:
    """0.0 where there is none: transformers begins with that, and it stands for a layer without levels."""
    if scalar is None:
        return 0.0
    value = math.nan
    if scalar.dtype == "F32" and math.prod(scalar.shape) == 1:
        value = float(np.frombuffer(read_range(scalar.file, scalar.offset, 4), "<f4")[0])
    if not 0 <= value < math.inf:
        raise CheckpointError(
            f"{scalar.file}: {scalar.name} is {value} ({scalar.dtype} of shape {list(scalar.shape)}), expected one F32 "
            "number from 0 on; download the checkpoint again"
        )
    return value
