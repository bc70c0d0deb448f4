"""quantization_config of config.json: which modules are packed, and how.

vLLM asks for a group of every linear layer that is not ignored, so both are said, by regular expressions: what is
packed, by module and layer, and what is not.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from gemma_edge.runtime.formats.encoding import Encoding

QUANT_METHOD: Final = "compressed-tensors"
PACKED: Final = "pack-quantized"
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
# Modules beside the decoder, whatever wraps them; of an image encoder that has layers with self_attn, too.
_OTHERS: Final = ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "multi_modal_projector")


def quantization_config(packed: Mapping[str, Encoding], plain: Sequence[str]) -> dict[str, Any]:
    """packed: modules by name. plain: names of the decoder's linear layers and tables that are not."""
    by_encoding: dict[Encoding, list[str]] = {}
    for module, encoding in packed.items():
        by_encoding.setdefault(encoding, []).append(module)
    groups = {
        f"group_{number}": {"targets": _targets(modules, packed), "weights": _weights(encoding)}
        for number, (encoding, modules) in enumerate(by_encoding.items())
    }
    return {
        "quant_method": QUANT_METHOD,
        "format": PACKED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", *(f"re:.*{name}.*" for name in _OTHERS), *_patterns(plain)],
    }


def _weights(encoding: Encoding) -> dict[str, Any]:
    return {
        "num_bits": encoding.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if encoding.block else "channel",
        "group_size": encoding.block or None,
        "dynamic": False,
    }


def _targets(modules: Iterable[str], packed: Iterable[str]) -> list[str]:
    """One expression for each kind of module: all its layers, or those listed."""
    whole = _by_part(packed)
    return [_pattern(part, () if layers == whole[part] else layers) for part, layers in _by_part(modules).items()]


def _pattern(part: str, layers: Sequence[str] = ()) -> str:
    """Of these layers; of all where none are given."""
    numbers = f"({'|'.join(layers)})" if layers else r"\d+"
    return rf"re:.*layers\.{numbers}\.{re.escape(part)}$"


def _patterns(modules: Iterable[str]) -> list[str]:
    outside = [rf"re:.*{re.escape(name)}$" for name in modules if _LAYER.fullmatch(name) is None]
    return [*outside, *map(_pattern, _by_part(modules))]


def _by_part(modules: Iterable[str]) -> dict[str, list[str]]:
    """ "self_attn.q_proj" -> ["0", "1", ...]."""
    found: dict[str, list[str]] = {}
    for module in modules:
        if matched := _LAYER.fullmatch(module):
            found.setdefault(matched[2], []).append(matched[1])
    return found
