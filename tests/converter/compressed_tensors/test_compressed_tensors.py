"""A directory for vLLM and transformers: transformers computes with what we packed, to the last bit, and we read it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from numpy.typing import NDArray

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.slices.shards import Header, write_shards
from gemma_edge.converter.cli import main
from gemma_edge.converter.compressed_tensors.bundle import CompressedBundle
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.verify.verify import verify
from gemma_edge.profiles.errors import GemmaEdgeError
from tools.tiny_towers import write_tiny_towers

FIXTURES = Path(__file__).parents[2] / "fixtures"
TRAINED = ("tiny-gemma3", "tiny-gemma3n")
IDS = [2, *range(300, 376)]  # longer than the fixtures' window
PACKED = ".weight_packed"

Float32 = NDArray[np.float32]


def written(source: Path, out: Path, target: str = "custom-int4", **options: Any) -> Path:
    convert(target, source, out, format="compressed-tensors", measure=False, **options)
    return out


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(GemmaEdgeError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dequantized(path: Path, out: Path) -> Path:
    """The checkpoint with the packed values as float32, by our reader."""
    source = Checkpoint.open(path)
    out.mkdir()
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    (out / "config.json").write_text(json.dumps(config))
    headers = {name: Header("F32", tensor.shape) for name, tensor in source.tensors.items()}

    def values(name: str) -> list[memoryview]:
        source_name = name if name.startswith("lm_head") else name.removeprefix(source.prefix)
        return [source.read(source_name).data.cast("B")]

    write_shards(out, headers, values, 1)
    return out


def logits(path: Path) -> Float32:
    """transformers', in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        found: Float32 = model(torch.tensor([IDS])).logits[0].numpy()
    return found


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    "encodings", [("attention=int4-b32", "ffn=int4-b32"), ("attention=int8", "ffn=int4-b128"), ("attention=fp16",)]
)
def test_transformers_computes_what_is_stored(name: str, encodings: tuple[str, ...], tmp_path: Path) -> None:
    """W4A16 in groups of 32 and of 128, W8A16, and a role that is not packed: not one bit differs."""
    path = written(FIXTURES / name, tmp_path / "packed", "custom-int8", encoding=encodings)
    found = logits(path)
    np.testing.assert_array_equal(found, logits(dequantized(path, tmp_path / "plain")))
    assert np.ptp(found) > 5
    source = Checkpoint.open(path)
    ours = np.concatenate([rows for _, rows in StreamingModel.open(source).run(np.array([IDS]))])
    np.testing.assert_allclose(ours, found, atol=1e-3, rtol=0)
    kinds = {tensor.dtype for tensor in source.tensors.values()}
    assert kinds & {"W4A16", "W8A16"}
    assert kinds <= {"W4A16", "W8A16", "BF16", "F32", "F16"}


def test_shards_and_their_index(tmp_path: Path) -> None:
    """As transformers names them; a matrix lies whole in one."""
    source, plan = plan_for(Target.parse("custom-int4", format="compressed-tensors"), FIXTURES / "tiny-gemma3n")
    bundle = CompressedBundle.lay_out(plan, source, shard_bytes=150_000)
    (tmp_path / "packed").mkdir()
    bundle.write(tmp_path / "packed", source, lambda: "", lambda _: None)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "packed").iterdir()}
    assert sizes == {file.name: file.nbytes for file in bundle.sections}
    assert sum(name.endswith(".safetensors") for name in sizes) > 10
    index = json.loads((tmp_path / "packed" / "model.safetensors.index.json").read_bytes())
    parts = [name for name in index["weight_map"] if name.endswith(PACKED)]
    scales = [name.replace(PACKED, ".weight_scale") for name in parts]
    assert all(index["weight_map"][a] == index["weight_map"][b] for a, b in zip(parts, scales, strict=True))
    whole = written(FIXTURES / "tiny-gemma3n", tmp_path / "whole")
    np.testing.assert_array_equal(logits(tmp_path / "packed"), logits(whole))
    assert {file.name for file in Checkpoint.open(tmp_path / "packed").input_files()} >= {
        name for name in sizes if name.endswith(".safetensors")
    }


def test_what_surrounds_the_decoder_is_copied(timm: None, tmp_path: Path) -> None:  # noqa: ARG001  it builds them
    """Encoders as they are, to the byte; tokens, template and processor; names as the checkpoint has them."""
    checkpoint = tmp_path / "checkpoint"
    write_tiny_towers(checkpoint)
    report = convert("custom-int4", checkpoint, tmp_path / "packed", format="compressed-tensors", measure=False)
    before, after = Checkpoint.open(checkpoint), Checkpoint.open(tmp_path / "packed")
    assert before.prefix == after.prefix
    assert before.tensors.keys() == after.tensors.keys()
    media = [name for name in before.tensors if "_tower." in name or (".embed_" in name and "tokens" not in name)]
    assert len(media) > 50
    for name in media:
        pair = [each.tensors[name] for each in (before, after)]
        stored = [tensor.file.read_bytes()[tensor.offset :][: tensor.nbytes] for tensor in pair]
        assert stored[0] == stored[1], name
    assert report.values["notes"] == ["encoders of images and audio are copied as they are"]
    for name in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
        if (checkpoint / name).exists():
            assert (tmp_path / "packed" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_keys_that_no_layer_reads_are_packed_as_its_queries(tmp_path: Path) -> None:
    """Official checkpoints of Gemma 3n hold them, and vLLM loads q, k and v of a layer as one."""
    source = Checkpoint.open(FIXTURES / "tiny-gemma3n")
    names = [*source.tensors, *(f"model.layers.7.self_attn.{part}_proj.weight" for part in "kv")]
    shapes = {
        name: source.tensors[name.replace("layers.7", "layers.4") if "layers.7" in name else name] for name in names
    }
    (tmp_path / "whole").mkdir()
    for file in (FIXTURES / "tiny-gemma3n").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "whole" / file.name).write_bytes(file.read_bytes())

    def values(name: str) -> list[bytes]:
        tensor = source.tensors.get(name) or shapes[name]
        return [tensor.file.read_bytes()[tensor.offset :][: tensor.nbytes]]

    headers = {name: Header(tensor.dtype, source.tensors.get(name, tensor).shape) for name, tensor in shapes.items()}
    write_shards(tmp_path / "whole", headers, values, 1)
    path = written(tmp_path / "whole", tmp_path / "packed", encoding=["attention=int4"])
    found = Checkpoint.open(path)
    for part in "qkv":
        assert found.tensors[f"model.layers.7.self_attn.{part}_proj.weight"].dtype == "W4A16"
    one, other = (found.read(f"layers.{layer}.self_attn.k_proj.weight") for layer in (4, 7))
    np.testing.assert_array_equal(one, other)


def test_it_is_a_checkpoint(tmp_path: Path) -> None:
    """verify, inspect and convert read it."""
    path = written(FIXTURES / "tiny-gemma3", tmp_path / "packed")
    report = verify(path, FIXTURES / "tiny-gemma3", limit=128, window=64)
    assert report.passed, report.findings
    assert {tensor.encoding for tensor in report.tensors} == {"fp32", "bf16", "int4-b32", "int8"}
    assert report.not_checked
    shown = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert shown.exit_code == 0, shown.output
    weights = {weight["name"]: weight for weight in json.loads(shown.stdout)["weights"]}
    assert weights["model.layers.0.mlp.up_proj.weight"] == {
        "name": "model.layers.0.mlp.up_proj.weight", "shape": [512, 128], "encoding": "W4A16",
        "file": "model.safetensors", "bytes": 512 * 128 // 2 + 512 * 4 * 2,
    }  # fmt: skip
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    assert shown.exit_code == 0
    again = convert("custom-int8", path, tmp_path / "again.litertlm", context=192, prefill=(8,))
    assert again.values["quality"]["verdict"] == "good"


@pytest.mark.parametrize(
    ("target", "encoding", "message"),
    [
        (
            "custom-fp16",
            (),
            "fp16: no matrix of attention or feed-forward is int4 or int8, and compressed-tensors packs no others; "
            "use --target custom-int4 or custom-int8",
        ),
        (
            "custom-int8",
            ("ffn=int4-b256",),
            "layers.0.mlp.down_proj.weight: compressed-tensors has no kernel for int4-b256; use int4-b32, int4-b128 or "
            "int8 (recipe int8, ffn=int4-b256, roles.ffn)",
        ),
    ],
)
def test_what_it_cannot_hold(target: str, encoding: tuple[str, ...], message: str, tmp_path: Path) -> None:
    found = refusal(lambda: written(FIXTURES / "tiny-gemma3", tmp_path / "a", target, encoding=encoding))
    assert found == message or "ffn=int4-b256" in found
    assert not (tmp_path / "a").exists()


def test_tables_are_not_packed(tmp_path: Path) -> None:
    text = (
        '[roles]\nembedding="int8"\nple="int8"\nhead="int8"\nattention="int8"\nffn="int8"\naltup="int8"\nsmall="int8"\n'
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'{text}router="int8"\nnorm="fp32"\n[tensors]\n"embed_tokens.weight" = "int8"\n')
    assert refusal(lambda: written(FIXTURES / "tiny-gemma3", tmp_path / "a", recipe=recipe)) == (
        "embed_tokens.weight: compressed-tensors packs attention and feed-forward alone, found int8-b128; use bf16 "
        f"(recipe {recipe}, tensors.embed_tokens.weight)"
    )


@pytest.mark.parametrize(
    ("part", "data", "message"),
    [
        (
            "shape",
            np.array([512, 0], "<i8").tobytes(),
            "model.layers.0.mlp.up_proj.weight_shape is [512, 0], expected a matrix",
        ),
        (
            "shape",
            np.array([512, 96], "<i8").tobytes(),
            "is packed in [512, 16] words with [512, 4] scales of BF16, expected",
        ),
        (
            "scale",
            b"\xff\xff",
            "model.layers.0.mlp.up_proj.weight: holds NaN, Inf or a value above 1e+12, expected weights",
        ),
    ],
)
def test_damaged_parts(part: str, data: bytes, message: str, tmp_path: Path) -> None:
    path = written(FIXTURES / "tiny-gemma3", tmp_path / "packed")
    content = bytearray((path / "model.safetensors").read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    offset = begin + header[f"model.layers.0.mlp.up_proj.weight_{part}"]["data_offsets"][0]
    content[offset : offset + len(data)] = data
    (path / "model.safetensors").write_bytes(content)
    assert message in refusal(lambda: Checkpoint.open(path).read("layers.0.mlp.up_proj.weight"))
