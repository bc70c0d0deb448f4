"""Bundles that are wrong in a known way: converted from a copy of a checkpoint that says something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards
from gemma_edge.converter.convert import convert
from gemma_edge.converter.verify.show.report import VerifyReport
from gemma_edge.converter.verify.verify import verify

Tensors = dict[str, NDArray[np.float32]]

CONTEXT_TOKENS = 256


def copied(checkpoint: Path, directory: Path, **config: Any) -> Path:
    """A copy whose config.json says otherwise."""
    shutil.copytree(checkpoint, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def rewritten(checkpoint: Path, directory: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A copy with other weights, stored as float32. change: from all tensors, by name without prefix."""
    source = Checkpoint.open(checkpoint)
    tensors = change({name.removeprefix(source.prefix): _values(source, name) for name in source.tensors})
    copied(checkpoint, directory, **config)
    (directory / "model.safetensors").unlink()
    prefixed = {name if name == "lm_head.weight" else source.prefix + name: tensors[name] for name in tensors}
    stored = {name: Header("F32", values.shape) for name, values in prefixed.items()}
    write_shards(directory, stored, lambda name: [prefixed[name].tobytes()], 1)
    return directory


def _values(source: Checkpoint, name: str) -> NDArray[np.float32]:
    return source.read(name.removeprefix(source.prefix))


def bundle_of(checkpoint: Path, precision: str = "int4", container: str = "litertlm", *, measure: bool = True) -> Path:
    """Converted beside the checkpoint's directory."""
    out = checkpoint.with_name(f"{checkpoint.name}-{precision}.{container}")
    convert(
        f"custom-{precision}",
        checkpoint,
        out,
        context=CONTEXT_TOKENS,
        prefill=(16,),
        format=container,
        measure=measure,
    )
    return out


def verified(bundle: Path, checkpoint: Path, tokens: Path, limit: int = 128, **options: Any) -> VerifyReport:
    """A short verification; weights are packed into memory."""
    return verify(
        bundle, checkpoint, tokens=tokens, limit=limit, window=128, threads=1, cache_dir=":nocache", **options
    )


def faults(report: VerifyReport) -> list[str]:
    """By name."""
    return [finding.name for finding in report.findings]
