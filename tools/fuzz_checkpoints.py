"""Convert mutated checkpoints: each gives a bundle, or is refused in one line and leaves nothing behind.

    python -m tools.fuzz_checkpoints [--cases 4000] [--seed 0] [--first 0]

Changes go to one or two files: JSON as values, headers of safetensors as values and as bytes, tokenizers and templates
as bytes and with hostile pieces, an adapter beside the model; and now and then a file is a pipe, a device, a folder or
a link to itself.
"""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gemma_edge.converter.convert import convert
from tools.fuzzing import LitterError, fuzz, mutated, mutated_json, options, report, to_json

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
_JSON = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
_FILES = (*_JSON, "model.safetensors", "tokenizer.model", "chat_template.jinja")
_ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {},
    "alpha_pattern": {}, "layers_to_transform": None, "use_rslora": False, "use_dora": False,
}  # fmt: skip
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)
_PIECES = (
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}", "{{ 9**(9**9) }}", "{{ 1 // 0 }}", "{{ '%999999999d' % 1 }}", "{{ messages[7].x }}",
    "{% if %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "{{ [].append(1) }}", "{{ ''.__class__ }}",
    "{% include 'x' %}", "{{ messages | pprint }}", "{{ raise_exception('\x1b[2J' * 9999) }}",
    "{% extends 'x' %}", "{{ self }}", "{{ cycler }}", "{% set x = namespace() %}{% set x.x = x %}{{ x }}",
    "{{ '(' * 3000 }}", "{% generation %}", "{{ strftime_now('%999999999d') }}",
)  # fmt: skip
_EXPRESSIONS = (
    "(a+)+$",
    "(.*.*)*x",
    "(\\w|_|.)*\\1!",
    "((((((((((a?)*)*)*)*)*)*)*)*)*)*x",
    "[",
    "(?P<n>",
    ".*" * 30 + "x",
    "(?<=a+)",
)


def case(rng: random.Random, folder: Path) -> Callable[[], None]:
    """A changed checkpoint, and its conversion."""
    family = rng.choice(("gemma3", "gemma3n"))
    checkpoint, out = folder / "checkpoint", folder / "out"
    shutil.copytree(FIXTURES / f"tiny-{family}", checkpoint)
    out.mkdir()
    settings: dict[str, Any] = {"measure": False, "context": rng.choice((64, 64, 300)), "prefill": (8,)}
    if rng.random() < 0.15:
        settings["lora"] = _adapter(checkpoint, folder / "adapter", rng)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            _change(checkpoint, rng)
        if rng.random() < 0.08:
            _odd_file(checkpoint / rng.choice(_FILES), rng)
    name = "model" if rng.random() < 0.15 else "model.litertlm"
    precision = rng.choice(("int4", "int8", "fp32"))

    def work() -> None:
        try:
            convert(f"custom-{precision}", checkpoint, out / name, format=None if "." in name else "onnx", **settings)
        except BaseException:
            if left := sorted(path.name for path in out.iterdir()):
                raise LitterError(f"{left}") from None
            raise

    return work


def _change(checkpoint: Path, rng: random.Random) -> None:
    """One file of a checkpoint."""
    weights = checkpoint / "model.safetensors"
    kind = rng.random()
    if kind < 0.35:
        path = checkpoint / rng.choice(_JSON)
        path.write_bytes(_changed_json(path.read_bytes(), rng))
    elif kind < 0.60:
        weights.write_bytes(_weights(weights.read_bytes(), rng))
    elif kind < 0.70:
        path = checkpoint / rng.choice(("tokenizer.model", "tokenizer.json"))
        path.write_bytes(mutated(path.read_bytes(), rng))
    else:
        template = _TEMPLATE
        at = rng.randrange(len(template))
        at = rng.choice((0, len(template), at))
        template = template[:at] + rng.choice(_PIECES) + template[at:]
        if rng.random() < 0.3:
            template = mutated(template.encode(), rng).decode(errors="surrogateescape")
        (checkpoint / "chat_template.jinja").write_text(template, errors="surrogateescape")


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    try:
        return to_json(mutated_json(json.loads(data), rng)) if rng.random() < 0.8 else mutated(data, rng)
    except ValueError:  # changed before
        return mutated(data, rng)


def _weights(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file: its header as a value or as bytes, or the length before it."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.2:
        return mutated(data[: 8 + length], rng) + rest
    header = _changed_json(header, rng) if rng.random() < 0.7 else mutated(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


def _odd_file(path: Path, rng: random.Random) -> None:
    path.unlink(missing_ok=True)
    match rng.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/random", "/dev/full", "/dev/null")))
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.touch()


def _adapter(checkpoint: Path, folder: Path, rng: random.Random) -> Path:
    """A small adapter that fits, with changes."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_bytes())
    tensors = {}
    hidden = config["intermediate_size"]
    widths = {
        "mlp.up_proj": hidden[0] if isinstance(hidden, list) else hidden,
        "self_attn.q_proj": config["num_attention_heads"] * config["head_dim"],
    }
    for module, rows in widths.items():
        name = f"base_model.model.model.layers.0.{module}"
        tensors[f"{name}.lora_A.weight"] = np.full((2, config["hidden_size"]), 0.01, np.float32)
        tensors[f"{name}.lora_B.weight"] = np.full((rows, 2), 0.01, np.float32)
    weights = folder / "adapter_model.safetensors"
    save_file(tensors, weights)
    settings: Any = dict(_ADAPTER)
    match rng.randrange(4):
        case 0:
            weights.write_bytes(_weights(weights.read_bytes(), rng))
        case 1:
            settings[rng.choice(("target_modules", "exclude_modules"))] = rng.choice(_EXPRESSIONS)
        case 2:
            settings[rng.choice(("rank_pattern", "alpha_pattern"))] = {rng.choice(_EXPRESSIONS): 2}
        case 3:
            settings = mutated_json(settings, rng)
    (folder / "adapter_config.json").write_bytes(to_json(settings))
    if rng.random() < 0.1:
        _odd_file(folder / rng.choice(("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")), rng)
    return folder


@click.command()
@options
def main(cases: int, seed: int, first: int) -> None:
    """Try mutated checkpoints."""
    report(fuzz(case, cases=cases, seed=seed, first=first))


if __name__ == "__main__":
    main()
