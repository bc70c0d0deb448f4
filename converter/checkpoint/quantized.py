"""Checkpoints that somebody quantized before: what did it, and what to do."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from gemma_edge.converter.checkpoint.integers import gemma_quant

_ORIGINAL: Final = "convert the checkpoint that it was made from"
_DEQUANTIZE: Final = "load it with transformers, call model.dequantize(), save_pretrained() it, and convert that"

# quant_method of config.json's quantization_config -> what people call it, what to do.
_METHODS: Final = {
    "gptq": ("GPTQ", _ORIGINAL),
    "awq": ("AWQ", _ORIGINAL),
    "compressed-tensors": ("compressed-tensors", _ORIGINAL),
    "bitsandbytes": ("bitsandbytes", _DEQUANTIZE),
    "fp8": ("FP8", _ORIGINAL),
    "fbgemm_fp8": ("FBGEMM FP8", _ORIGINAL),
    "modelopt": ("NVIDIA ModelOpt", _ORIGINAL),
    "hqq": ("HQQ", _ORIGINAL),
    "quanto": ("Quanto", _ORIGINAL),
    "torchao": ("torchao", _ORIGINAL),
    "mxfp4": ("MXFP4", _ORIGINAL),
    "mlx": ("MLX", "run `mlx_lm.convert --dequantize` on it, and convert that"),
}

# Endings of tensor names that say it where config.json does not.
_ENDINGS: Final = (
    ((".qweight", ".qzeros", ".g_idx"), "gptq"),
    ((".qweight", ".qzeros"), "awq"),
    ((".weight_packed", ".weight_scale"), "compressed-tensors"),
    ((".weight.absmax",), "bitsandbytes"),
    ((".scales", ".biases"), "mlx"),
    ((".weight_scale_inv",), "fp8"),
    ((".weight_scale",), "fp8"),
)


def quantized_by(config: Mapping[str, Any], names: Collection[str]) -> str | None:
    """ "quantized by GPTQ (4 bits); convert ...", for an error; None where nothing says so.

    config: config.json. names: of the stored tensors.
    """
    method, settings = _configured(config)
    if method is None:
        method = next((m for ends, m in _ENDINGS if all(any(n.endswith(e) for n in names) for e in ends)), None)
    if method in (None, gemma_quant.METHOD):  # the latter is read
        return None
    name, advice = _METHODS.get(method, (method, _ORIGINAL))
    bits = settings.get("bits", 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None)
    width = f" ({bits} bits)" if isinstance(bits, int) and not isinstance(bits, bool) else ""
    return f"quantized by {name}{width}, which is not read; {advice}"


def _configured(config: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    nested = config.get("text_config")
    for values in (config, nested if isinstance(nested, Mapping) else {}):
        settings = values.get("quantization_config")
        if isinstance(settings, Mapping):
            method = settings.get("quant_method")
            by_width = settings.get("load_in_4bit") or settings.get("load_in_8bit")
            return ("bitsandbytes" if method is None and by_width else str(method)), settings
        if isinstance(settings := values.get("quantization"), Mapping):  # mlx_lm.convert
            return "mlx", settings
    return None, {}
