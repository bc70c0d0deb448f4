"""[tensors] of a recipe: single matrices that differ from their role, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.convert import convert
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.recipes import RecipeError
from gemma_edge.converter.tensors import Role
from gemma_edge.profiles.footprint import Part

INT4 = """\
[roles]
embedding = "int8"
ple = "int4"
head = "int8"
attention = "int4"
ffn = "int4"
altup = "int8"
small = "int8"
router = "int8"
norm = "fp32"
[floor]
values = 4096
columns_multiple_of = 32
"""
SMALL: dict[str, Any] = {"context": 256, "prefill": (16,)}


def recipe(tmp_path: Path, tensors: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(f"{INT4}[tensors]\n{tensors}\n")
    return path


def test_a_named_tensor_gets_its_own_encoding(tiny_gemma3: Path, tmp_path: Path) -> None:
    named = recipe(tmp_path, '"layers.2.mlp.down_proj.weight" = "int8"\n"layers.3.mlp.up_proj.weight" = "int4-b64"')
    _, plan = plan_for(Target.parse("custom-int4", recipe=named, **SMALL), tiny_gemma3)
    _, plain = plan_for(Target.parse("custom-int4", recipe="int4-fast", **SMALL), tiny_gemma3)
    found = {name: storage.encoding.name for name, storage in plan.storages.items()}
    expected = {name: storage.encoding.name for name, storage in plain.storages.items()}
    assert found == expected | {"layers.2.mlp.down_proj.weight": "int8", "layers.3.mlp.up_proj.weight": "int4-b64"}

    def weights(parts: tuple[Part, ...]) -> int:
        return sum(part.file_bytes for part in parts)

    larger = sum(tensor.nbytes for tensor in plan.tensors) - sum(tensor.nbytes for tensor in plain.tensors)
    assert larger > 0
    assert weights(plan.footprint.parts) - weights(plain.footprint.parts) == larger


def test_a_bundle_is_written_as_named(tiny_gemma3: Path, tmp_path: Path) -> None:
    named = recipe(tmp_path, '"layers.2.mlp.down_proj.weight" = "int8"')
    report = convert("custom-int4", tiny_gemma3, tmp_path / "out", recipe=named, **SMALL)
    assert report.values["recipe"]["tensors"] == {"layers.2.mlp.down_proj.weight": "int8"}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            '"layers.2.mlp.dawn_proj.weight" = "int8"',
            "tensors.layers.2.mlp.dawn_proj.weight: expected the name of a matrix of this model; "
            "`inspect` lists a bundle's",
        ),
        (
            '"norm.weight" = "int8"',
            "tensors.norm.weight: expected the name of a matrix of this model; `inspect` lists a bundle's",
        ),
        (
            '"embed_tokens.weight" = "int4-b32"',
            "tensors.embed_tokens.weight: found int4-b32, expected no blocks; "
            "in int4, tables have a scale per layer or row; use int4 or int8",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny_gemma3: Path, tensors: str, message: str, tmp_path: Path) -> None:
    path = recipe(tmp_path, tensors)
    with pytest.raises(RecipeError) as refused:
        plan_for(Target.parse("custom-int4", recipe=path, **SMALL), tiny_gemma3)
    assert str(refused.value) == f"{path}: {message}"


def test_a_matrix_below_the_floor_is_refused_but_as_what_it_is(tiny_gemma3n: Path, tmp_path: Path) -> None:
    name = "layers.0.laurel.linear_left.weight"
    path = recipe(tmp_path, f'"{name}" = "int8"')
    with pytest.raises(RecipeError) as refused:
        plan_for(Target.parse("custom-int4", recipe=path, **SMALL), tiny_gemma3n)
    assert str(refused.value) == (
        f"{path}: tensors.{name}: found int8, expected fp32; (16, 128) is below the floor, "
        "lower that or remove the line"
    )
    plan_for(Target.parse("custom-int4", recipe=recipe(tmp_path, f'"{name}" = "fp32"'), **SMALL), tiny_gemma3n)


def test_a_file_may_be_called_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(tmp_path, "").rename(tmp_path / "auto")
    monkeypatch.chdir(tmp_path)
    for own in ("./auto", Path("auto")):
        assert Target.parse("custom-int4", recipe=own).recipe.name == "auto"


def test_the_word_that_a_plan_prints_for_a_table_can_be_asked_for(tiny_gemma3n: Path) -> None:
    _, plan = plan_for(Target.parse("custom-int4", **SMALL), tiny_gemma3n)
    [word] = {plan.storages[name].encoding.name for name, spec in plan.specs.items() if spec.role is Role.PLE}
    assert word.startswith("int4-b")
    _, asked = plan_for(Target.parse("custom-int4", encoding=[f"ple={word}"], **SMALL), tiny_gemma3n)
    assert asked.storages == plan.storages
    with pytest.raises(RecipeError) as refused:
        plan_for(Target.parse("custom-int4", encoding=["ple=int4-b256"], **SMALL), tiny_gemma3n)
    assert str(refused.value) == (
        "embed_tokens_per_layer.weight: found int4-b256, expected int4: in 4 bits, tables have a scale per layer or "
        f"row, here {word} (recipe int4, ple=int4-b256, roles.ple)"
    )


def test_tables_have_no_fewer_bits_than_are_read(tiny_gemma3n: Path, tmp_path: Path) -> None:
    name = "embed_tokens_per_layer.weight"
    path = recipe(tmp_path, f'"{name}" = "int2"')
    asked: list[tuple[dict[str, Any], str]] = [
        ({"recipe": path}, f"{path}, tensors.{name}"),
        ({"encoding": ["ple=int2"], "format": "onnx"}, "int4, ple=int2, roles.ple"),
    ]
    for options, where in asked:
        with pytest.raises(RecipeError) as refused:
            plan_for(Target.parse("custom-int4", **{**SMALL, **options}), tiny_gemma3n)
        assert str(refused.value) == (
            f"{name}: found int2, expected int4 or int8; rows of a table are read in at least 4 bits (recipe {where})"
        )
