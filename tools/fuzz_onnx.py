"""Load mutated ONNX directories and ask them something: each answers, or is refused in one line.

    python -m tools.fuzz_onnx [--cases 1000] [--seed 0] [--first 0]

Changes go where a loader looks: graphs, as bytes and as what they mean, the files beside them, and weights. Most cases
record the digests of what they hold now, as someone would who means harm; others have none, as an older converter left
them. The rest keep the digests of what was converted, and have to answer as the directory that was not changed.
"""

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import click
import onnx
import onnx_ir  # noqa: F401  imported once, before a case forks
import onnxruntime  # noqa: F401
from google.protobuf.message import DecodeError

from gemma_edge.converter.convert import convert
from gemma_edge.converter.onnx.inspect import inspect_directory
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.onnx import decoder  # noqa: F401
from gemma_edge.runtime.formats.onnx_digests import DIGESTS, Digests
from gemma_edge.runtime.text.sampler import SamplerConfig
from tools.fuzzing import WrongError, fuzz, mutated, mutated_json, options, report, to_json

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
PROFILE = "raspberry-pi-4-4gb"
_PROMPT = "Once upon a time"
_SIZES = (-1, 0, 1, 2, 3, 7, 8, 64, 255, 4096, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
_LOCATIONS = ("", ".", "..", "../config.json", "/etc/hostname", "config.json", "x\n", "a" * 300, "\x1b[2J")


@cache
def originals() -> Sequence[Path]:
    """Sound directories of both families."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-onnx-"))
    made = []
    for family, precision in (("gemma3", "int4"), ("gemma3n", "int8"), ("gemma3n", "fp32"), ("gemma3", "fp16")):
        path = folder / f"{family}-{precision}"
        convert(
            f"custom-{precision}", FIXTURES / f"tiny-{family}", path, measure=False, context=64, prefill=(8,),
            format="onnx",
        )  # fmt: skip
        made.append(path)
    return made


def case(rng: random.Random, folder: Path) -> Callable[[], None]:
    """One changed directory, and a program that inspects it and asks it something."""
    source = rng.choice(originals())
    path = Path(shutil.copytree(source, folder / "model"))
    for _ in range(rng.choice((1, 1, 1, 2))):
        _change(path, rng)
    digests = rng.choice(("kept", "new", "new", "none"))
    if digests == "new" and isinstance((recorded := Digests.read(source).recorded), dict):
        there = [name for name in recorded if (path / name).exists()]
        (path / DIGESTS).write_bytes(Digests.written({name: _sha256(path / name) for name in there}))
    elif digests == "none":
        (path / DIGESTS).unlink()
    cache_dir = str(folder / "cache") if rng.random() < 0.2 else ":nocache"
    profile = PROFILE if rng.random() < 0.2 else None
    inspects = rng.random() < 0.3
    is_as_converted = digests == "kept" and all(
        (path / name).read_bytes() == (source / name).read_bytes() for name in _SETTINGS
    )

    def work() -> None:
        if inspects:
            inspect_directory(path)
        said = _reply(path, cache_dir, profile)
        if is_as_converted and said != (expected := _reply(source, ":nocache", None)):
            raise WrongError(f"{said!r}, expected {expected!r}")

    return work


_SETTINGS = ("config.json", "digests.json")  # which nothing vouches for


def _reply(path: Path, cache_dir: str, profile: str | None) -> str:
    with Engine(str(path), cache_dir=cache_dir, profile=profile) as engine:
        talk = engine.create_conversation(sampler_config=SamplerConfig(top_k=1), max_output_tokens=2)
        return str(talk.send_message(_PROMPT))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _change(path: Path, rng: random.Random) -> None:
    """One file."""
    graphs, weights = sorted(path.glob("onnx/*.onnx")), sorted(path.glob("onnx/*_data"))
    match rng.randrange(10):
        case 0 | 1:
            graph = rng.choice(graphs)
            graph.write_bytes(mutated(graph.read_bytes(), rng))
        case 2 | 3 | 4 | 5:
            _change_graph(rng.choice(graphs), rng)
        case 6:
            file = rng.choice(weights)
            content = file.read_bytes()
            found = mutated(content, rng)
            file.write_bytes(found[: len(content)].ljust(len(content), b"\0") if rng.random() < 0.7 else found)
        case 7:
            file = path / rng.choice(("tokenizer.model", "llm_metadata.pb"))
            file.write_bytes(mutated(file.read_bytes(), rng))
        case 8:
            file = path / rng.choice(("config.json", DIGESTS))
            content = file.read_bytes()
            with suppress(ValueError):  # changed once already
                file.write_bytes(to_json(mutated_json(json.loads(content), rng)))
        case 9:
            file = rng.choice([*graphs, *weights, *(path / name for name in ("config.json", DIGESTS))])
            file.write_bytes(rng.choice((b"", b"\0" * 100, b"{", b"[]", mutated(file.read_bytes(), rng))))


def _change_graph(file: Path, rng: random.Random) -> None:
    """What a graph means: sizes, types, operators, where weights lie."""
    content = file.read_bytes()
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:  # changed once already
        file.write_bytes(mutated(content, rng))
        return
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 3)) if graph.initializer and graph.node and graph.input else 0):
        tensor: Any = rng.choice(graph.initializer)
        node: Any = rng.choice(graph.node)
        value: Any = rng.choice([*graph.input, *graph.output])
        match rng.randrange(12):
            case 0 if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_SIZES)
            case 1:
                tensor.data_type = rng.randrange(30)
            case 2 if tensor.external_data:
                entry = rng.choice(tensor.external_data)
                entry.value = rng.choice(_LOCATIONS) if entry.key == "location" else str(rng.choice(_SIZES))
            case 3:
                tensor.raw_data = mutated(tensor.raw_data or b"\0" * 8, rng)
            case 4 if node.attribute:
                attribute = rng.choice(node.attribute)
                attribute.i, attribute.type = rng.choice(_SIZES), rng.choice((attribute.type, 2))
            case 5:
                node.op_type = rng.choice(graph.node).op_type
            case 6 if len(node.input):
                node.input[rng.randrange(len(node.input))] = rng.choice(graph.initializer).name
            case 7:
                graph.node.remove(node)
            case 8:
                del node.input[rng.randrange(len(node.input) + 1) :]
            case 9:
                shape = value.type.tensor_type.shape
                if shape.dim:
                    rng.choice(shape.dim).dim_value = rng.choice(_SIZES)
            case 10:
                value.name = rng.choice(("", "x", value.name + "x", rng.choice([*graph.input, *graph.output]).name))
            case _:
                node.output[0] = rng.choice((rng.choice(graph.node).output[0], ""))
    file.write_bytes(model.SerializeToString())


@click.command()
@options
def main(cases: int, seed: int, first: int) -> None:
    """Try mutated ONNX directories."""
    report(fuzz(case, cases=cases, seed=seed, first=first))


if __name__ == "__main__":
    main()
