"""`gemma-edge slice`: a slice written as a Hugging Face checkpoint, for other tools. Stored values are copied."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from gemma_edge.converter.checkpoint.checkpoint import SIDE_FILES, Checkpoint
from gemma_edge.converter.checkpoint.safetensors_file import TensorInfo
from gemma_edge.converter.checkpoint.slices.shards import ITEM_BYTES, Header, write_shards
from gemma_edge.converter.checkpoint.slices.view import Cut, sliced
from gemma_edge.converter.models.matformer.slices import Slice, SliceError
from gemma_edge.converter.progress import OnBytes, Stage

_PIECE_BYTES: Final = 8 << 20
_SHARD_BYTES: Final = 4 << 30


def write_slice(path: Path, wanted: Slice, out: Path, stage: Stage) -> None:
    """Write the slice `wanted` of the checkpoint at `path` into the new directory `out`, which appears when complete.

    config.json says what was cut; tokenizer, template and processor are copied; encoders stay as they are.
    Raises SliceError, CheckpointError and ConfigError, with one line to print.
    """
    if out.exists():
        raise SliceError(f"{out}: exists already; name a new directory")
    if not out.absolute().parent.is_dir():
        raise SliceError(f"{out}: its parent directory does not exist; create it")
    whole = Checkpoint.open(path)
    if whole.origin is not None:
        raise SliceError(
            f"{path}: a GGUF, whose values are not stored as safetensors has them; give the Hugging Face one"
        )
    view = sliced(whole, wanted)
    if odd := next((t for t in view.tensors.values() if t.dtype not in ITEM_BYTES), None):
        raise SliceError(
            f"{odd.name}: dtype {odd.dtype}, expected {', '.join(ITEM_BYTES)}; slice what is not quantized"
        )
    headers = {name: Header(tensor.dtype, tensor.shape) for name, tensor in view.tensors.items()}
    total = sum(header.nbytes for header in headers.values())
    on_bytes = stage("slice", total)

    def values(name: str) -> Iterator[bytes]:
        cut = view.cuts.get(name.removeprefix(whole.prefix))
        stored = whole.tensors[name] if cut is None else whole.tensors[whole.prefix + cut.source]
        yield from _pieces(stored, cut, on_bytes)

    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
        made = Path(folder) / "checkpoint"
        made.mkdir()
        for name in SIDE_FILES:
            if (path / name).is_file() and not name.startswith("model."):
                shutil.copyfile(path / name, made / name)
        (made / "config.json").write_text(json.dumps(dict(view.config), indent=2) + "\n", encoding="utf-8")
        write_shards(made, headers, values, max(1, -(-total // _SHARD_BYTES)))
        made.rename(out)


def _pieces(stored: TensorInfo, cut: Cut | None, on_bytes: OnBytes) -> Iterator[bytes]:
    """The bytes of what is cut out, a few rows at a time."""
    item = ITEM_BYTES[stored.dtype]
    flat = replace(stored, shape=(stored.shape[0] if stored.shape else 1, math.prod(stored.shape[1:])))
    rows = np.memmap(stored.file, f"V{item}", "r", stored.offset, flat.shape)
    step = max(1, _PIECE_BYTES // max(1, rows.shape[1] * item))
    for begin, end in cut.rows if cut is not None and cut.rows is not None else ((0, len(rows)),):
        for first in range(begin, end, step):
            part = rows[first : min(first + step, end)]
            if cut is not None and cut.columns is not None:
                part = np.concatenate([part[:, left:right] for left, right in cut.columns], axis=1)
            piece = part.tobytes()
            on_bytes(len(piece))
            yield piece
