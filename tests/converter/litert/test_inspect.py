"""What `inspect` says of a bundle against what went into it, and what it says of a damaged one."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema
from rich.console import Console

from gemma_edge.converter.calibrate.planning import lay_out, plan_for
from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.inspect import inspect_bundle, print_inspection
from gemma_edge.converter.plan.target import Target
from gemma_edge.runtime.formats.litertlm import ALIGNMENT_BYTES, VERSION, Bundle, BundleError

SECTIONS = [
    "llm_metadata",
    "sentencepiece_tokenizer",
    "executor_metadata",
    "tf_lite_prefill_decode",
    "tf_lite_embedder",
    "tf_lite_per_layer_embedder",
]
RECIPE = """
[roles]
embedding = "int4"
ple = "int8"
head = "int4-b32"
attention = "int4-b128"
ffn = "int4"
altup = "fp16"
small = "int2"
router = "fp32"
norm = "fp32"
"""
TARGET: dict[str, Any] = {"target": "custom-int4", "context": 512, "prefill": (8, 32)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every encoding there is."""
    path = tmp_path_factory.mktemp("recipe") / "all.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def path(tiny_gemma3n: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.litertlm"
    convert(checkpoint=tiny_gemma3n, out=path, recipe=recipe, **TARGET)
    return path


@pytest.fixture(scope="module")
def values(path: Path) -> dict[str, Any]:
    return inspect_bundle(path)


def section(values: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = (section for section in values["sections"] if section["name"] == name)
    return dict(found)


def test_the_file(path: Path, values: dict[str, Any]) -> None:
    assert (values["file"], values["bytes"]) == ("model.litertlm", path.stat().st_size)
    assert values["version"] == ".".join(map(str, VERSION))
    assert values["system"]["Authors"] == "gemma-edge"
    assert json.loads(json.dumps(values)) == values


def test_sections_and_their_hashes(path: Path, values: dict[str, Any]) -> None:
    assert [section["name"] for section in values["sections"]] == SECTIONS
    content = path.read_bytes()
    for found in values["sections"]:
        assert found["begin"] % ALIGNMENT_BYTES == 0
        data = content[found["begin"] : found["begin"] + found["bytes"]]
        assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["begin"] + found["bytes"] == len(content)


def test_signatures(values: dict[str, Any]) -> None:
    """tiny-gemma3n: D = 128, 8 layers, P = 32, V = 2080; 5 layers own KV of K = 2, E = 32, 4 of them rings of 96."""
    decode, *prefills = section(values, "tf_lite_prefill_decode")["signatures"]
    assert [decode["name"], *(prefill["name"] for prefill in prefills)] == ["decode", "prefill_8", "prefill_32"]
    caches = {}
    for layer in range(5):
        slots = 512 if layer == 3 else 96
        caches[f"kv_cache_k_{layer}"] = ([1, 2, slots, 32], "float32")
        caches[f"kv_cache_v_{layer}"] = ([1, 2, 32, slots], "float32")
    for tokens, signature in zip((1, 8, 32), (decode, *prefills), strict=True):
        inputs = {tensor["name"]: (tensor["shape"], tensor["type"]) for tensor in signature["inputs"]}
        assert inputs == caches | {
            "embeddings": ([1, tokens, 128], "float32"),
            "per_layer_embeddings": ([1, tokens, 8, 32], "float32"),
            "input_pos": ([tokens], "int32"),
        }
        outputs = {tensor["name"]: (tensor["shape"], tensor["type"]) for tensor in signature["outputs"]}
        logits = {"logits": ([1, 1, 2080], "float32")} if tokens == 1 else {}
        assert outputs == caches | logits


def test_lookups(values: dict[str, Any]) -> None:
    shapes = {"embedder": [1, 1, 128], "per_layer_embedder": [1, 1, 8, 32]}
    for name, shape in shapes.items():
        [signature] = section(values, f"tf_lite_{name}")["signatures"]
        assert signature == {
            "name": name,
            "inputs": [{"name": "token_ids", "shape": [1, 1], "type": "int32"}],
            "outputs": [{"name": "embeddings", "shape": shape, "type": "float32"}],
        }


def test_every_tensor_is_there_once_in_the_encoding_of_the_plan(
    values: dict[str, Any], tiny_gemma3n: Path, recipe: Path
) -> None:
    plan = plan_for(Target.parse(recipe=recipe, **TARGET), tiny_gemma3n)[1]
    expected = sorted((f"tf_lite_{t.section}", t.spec.name, t.storage.encoding.name, t.nbytes) for t in plan.tensors)
    found = []
    for part in values["sections"]:
        weights = {weight["name"]: weight for weight in part.get("weights", ())}
        assert len(weights) == len(part.get("weights", ()))
        for name, weight in weights.items():
            if not name.endswith(".scale"):
                scales = weights[f"{name}.scale"]["bytes"] if f"{name}.scale" in weights else 0
                per_row = 4 * weight["shape"][0] if weight["encoding"] in ("int8", "int4", "int2") else 0
                nbytes = weight["bytes"] + scales + per_row
                found.append((part["name"].replace("prefill_decode", "decoder"), name, weight["encoding"], nbytes))
    assert sorted(found) == expected
    encodings = {encoding for _, _, encoding, _ in found}
    assert encodings == {"fp32", "fp16", "int8", "int4", "int2", "int4-b32", "int4-b128"}


def test_metadata(values: dict[str, Any]) -> None:
    metadata = values["metadata"]
    assert metadata["max_num_tokens"] == 512
    assert metadata["llm_model_type"] == {"gemma3n": {}}
    assert metadata["stop_tokens"] == [{"token_ids": {"ids": [1]}}, {"token_ids": {"ids": [11]}}]


def test_printed_for_people(values: dict[str, Any], path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_inspection(values, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    sections = values["sections"]
    for name in (path.name, *SECTIONS, "prefill_32", "kv_cache_k_4", *(section["sha256"] for section in sections)):
        assert name in text
    row = next(line for line in text.splitlines() if "layers.0.mlp.up_proj.weight" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "layers.0.mlp.up_proj.weight",
        "[256, 128]",
        "int4",
        "16,384",
    ]


def test_names_are_no_markup(values: dict[str, Any]) -> None:
    tensor = {"name": "[red]t", "shape": [1], "type": "float32"}
    hostile = {
        "name": "[/b]section", "begin": 0, "bytes": 1, "sha256": "0", "sha256_recorded": "[/x]",
        "signatures": [{"name": "[/s]", "inputs": [tensor], "outputs": []}],
        "weights": [{"name": "[/i]w", "shape": [1], "encoding": "int4", "bytes": 1}],
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    print_inspection(values | {"file": "model [final].litertlm", "sections": [hostile]}, console)
    assert isinstance(console.file, io.StringIO)
    for name in ("model [final].litertlm", "[/b]section", "NOT [/x]", "[/s]", "[red]t", "[/i]w"):
        assert name in console.file.getvalue()


def test_scalars_of_other_writers(path: Path, tmp_path: Path) -> None:
    """Theirs leave the shape out, where ours writes an empty one."""
    builder = flatbuffers.Builder()
    tensors = [schema.TensorT(name=b"scalar", type=schema.TensorType.INT32, buffer=1)]
    entry = schema.TensorMapT(name=b"position", tensorIndex=0)
    model = schema.ModelT(
        version=3,
        buffers=[schema.BufferT(), schema.BufferT(offset=1 << 16, size=4)],
        subgraphs=[schema.SubGraphT(tensors=tensors, inputs=[0])],
        signatureDefs=[schema.SignatureDefT(signatureKey=b"decode", subgraphIndex=0, inputs=[entry], outputs=[])],
    )
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    content = bytearray(path.read_bytes())
    [where] = (section for section in Bundle.open(path).sections if section.name == "tf_lite_embedder")
    content[where.begin : where.begin + len(builder.Output())] = builder.Output()
    other = tmp_path / "model.litertlm"
    other.write_bytes(content)
    embedder = section(inspect_bundle(other), "tf_lite_embedder")
    assert embedder["signatures"][0]["inputs"] == [{"name": "position", "shape": [], "type": "int32"}]
    assert [(weight["name"], weight["shape"]) for weight in embedder["weights"]] == [("scalar", [])]


# ---------------------------------------------------------------- damage


def message(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        inspect_bundle(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_bundle(tiny_gemma3n: Path, tmp_path: Path) -> None:
    assert "cannot read (No such file or directory)" in message(tmp_path / "model.litertlm")
    assert "not a .litertlm bundle" in message(tiny_gemma3n / "model.safetensors")


def test_a_truncated_bundle(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.litertlm"
    damaged.write_bytes(path.read_bytes()[:-1])
    assert message(damaged).endswith(
        f"truncated, the file has {path.stat().st_size - 1} bytes; copy the file again"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["tf_lite_prefill_decode", "tf_lite_embedder", "llm_metadata"])
@pytest.mark.parametrize("garbage", [bytes, lambda n: b"\xff" * n, lambda n: bytes(i % 251 for i in range(n))])
def test_a_damaged_section_is_named(path: Path, name: str, garbage: Callable[[int], bytes], tmp_path: Path) -> None:
    [where] = (section for section in Bundle.open(path).sections if section.name == name)
    content = bytearray(path.read_bytes())
    content[where.begin : where.begin + 1024] = garbage(1024)
    damaged = tmp_path / "model.litertlm"
    damaged.write_bytes(content)
    what = f"section {name} does not match the SHA-256 in its table"  # checked where a section is read whole
    if name.startswith("tf_lite"):
        what = f"its {name} section is corrupt (begins with {garbage(8)[4:]!r}, expected b'TFL3')"
    assert message(damaged) == f"{damaged}: {what}; copy the file again"


def test_sizes_are_those_of_the_layout(values: dict[str, Any], tiny_gemma3n: Path, recipe: Path) -> None:
    source, plan = plan_for(Target.parse(recipe=recipe, **TARGET), tiny_gemma3n)
    planned = {section.name: section.nbytes for section in lay_out(plan, source).sections}
    assert {section["name"]: section["bytes"] for section in values["sections"]} == planned
