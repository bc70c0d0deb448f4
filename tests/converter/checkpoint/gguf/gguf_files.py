"""GGUF files to read: of the fixtures, by tools/gguf_writer, and byte by byte, right and wrong."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.gguf.values import TYPES

Float32 = NDArray[np.float32]

_CODES = {int: (4, "<I"), float: (6, "<f"), bool: (7, "<?")}
# Where in a block of that type the float16 scales lie.
_SCALES = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210)}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """Type and bytes of one value of the metadata."""
    if isinstance(item, bytes):  # as it is
        return item
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, list):
        inner = [value(one) for one in item]
        kind = inner[0][:4] if inner else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(item)) + b"".join(one[4:] for one in inner)
    code, layout = _CODES[type(item)]
    return struct.pack("<I", code) + struct.pack(layout, item)


@dataclass
class Raw:
    """A file in the making. tensors: name -> (type number, shape as numpy has it, bytes)."""

    metadata: dict[str, Any] = field(default_factory=lambda: {"general.architecture": "gemma3"})
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = field(default_factory=dict)
    version: int = 3
    alignment: int = 32
    offsets: dict[str, int] = field(default_factory=dict)  # in place of the right ones
    pairs: list[bytes] = field(default_factory=list)  # further metadata, as bytes

    def add(self, name: str, values: Float32, kind: str = "F32") -> None:
        qtype = gguf.GGMLQuantizationType[kind]
        self.tensors[name] = (TYPES[kind].number, values.shape, gguf.quants.quantize(values, qtype).tobytes())

    def data(self) -> bytes:
        pairs = [string(key) + value(item) for key, item in self.metadata.items()] + self.pairs
        infos, data = b"", b""
        for name, (number, shape, content) in self.tensors.items():
            infos += string(name) + struct.pack("<I", len(shape))
            infos += b"".join(struct.pack("<Q", size) for size in reversed(shape))
            infos += struct.pack("<IQ", number, self.offsets.get(name, len(data)))
            data += content + bytes(-len(content) % self.alignment)
        counts = struct.pack("<IQQ", self.version, len(self.tensors), len(pairs))
        header = b"GGUF" + counts + b"".join(pairs) + infos
        return header + bytes(-len(header) % self.alignment) + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.data())
        return path


def small() -> Raw:
    """Two tensors and a bit of metadata."""
    raw = Raw({"general.architecture": "gemma3", "a.list": ["x", "yz"], "a.number": 7, "a.share": 0.5, "a.flag": True})
    raw.add("token_embd.weight", np.arange(128, dtype=np.float32).reshape(4, 32), "Q8_0")
    raw.add("output_norm.weight", np.ones(3, np.float32))
    return raw


def random_blocks(kind: str, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of any type, [count, bytes]: of random bits, with moderate scales, where gguf cannot quantize."""
    rng = np.random.default_rng(seed)
    size, qtype = TYPES[kind], gguf.GGMLQuantizationType[kind]
    if kind not in _SCALES:
        values = rng.standard_normal((count, size.block)).astype(np.float32)
        found: NDArray[np.uint8] = gguf.quants.quantize(values, qtype).view(np.uint8).reshape(count, size.nbytes)
        return found
    blocks = rng.integers(0, 256, (count, size.nbytes), np.uint8)
    begin, end = _SCALES[kind]
    scales = rng.uniform(-0.01, 0.01, (count, (end - begin) // 2)).astype("<f2")
    blocks[:, begin:end] = scales.view(np.uint8).reshape(count, -1)
    return blocks


def metadata_of(path: Path) -> Mapping[str, Any]:
    """By gguf's own reader."""
    return {key: item.contents() for key, item in gguf.GGUFReader(path).fields.items() if not key.startswith("GGUF.")}
