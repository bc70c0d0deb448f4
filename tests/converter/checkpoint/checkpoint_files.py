"""Small safetensors files, right and wrong, and the message that reading one ends with."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.checkpoint.checkpoint import CheckpointError
from gemma_edge.converter.tensors import Role, TensorSpec

EMBEDDING = TensorSpec("embed_tokens.weight", "embed_tokens.weight", (8, 4), Role.EMBEDDING)
NORM = TensorSpec("norm.weight", "norm.weight", (4,), Role.NORM)
HEAD = TensorSpec("lm_head.weight", "lm_head.weight", (8, 4), Role.HEAD)
TIED_HEAD = TensorSpec("lm_head.weight", "embed_tokens.weight", (8, 4), Role.HEAD)

Header = dict[str, Any]


def two_tensors() -> Header:
    """The header of a complete small checkpoint: embedding and norm, F32, 144 bytes of data."""
    return {
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]},
        "model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [128, 144]},
    }


def write_raw(path: Path, header: Header | bytes, data: bytes = bytes(144)) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def one_line(call: Callable[[], object]) -> str:
    """The message of the CheckpointError that `call` raises."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
