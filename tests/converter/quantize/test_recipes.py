"""Recipes: what the named ones decide, how files are read, and every refusal by file and key."""

import tomllib
from pathlib import Path

import pytest

from gemma_edge.converter.models.official import official_model
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.quantize import Search
from gemma_edge.converter.quantize.recipes import ENCODER_ROLES, NAMES, Floor, Placement, Recipe, RecipeError
from gemma_edge.converter.tensors import Role, TensorSpec

DECODER_ROLES = [role for role in Role if role not in ENCODER_ROLES]
INT8 = "\n".join(f'{role} = "{"fp32" if role is Role.NORM else "int8"}"' for role in DECODER_ROLES)


def spec(role: Role, *shape: int) -> TensorSpec:
    return TensorSpec("layers.3.q", "layers.3.self_attn.q_proj.weight", shape, role)


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_named_recipes_decide_for_every_role(name: str) -> None:
    recipe = Recipe.named(name)
    for role in DECODER_ROLES:
        shape = (2048,) if role is Role.NORM else (2048, 2048)
        expected = "fp32" if role is Role.NORM else name
        if name == "int4":
            expected = {
                Role.NORM: "fp32", Role.FFN: "int4-b64", Role.HEAD: "int4-b64", Role.PLE: "int4"
            }.get(role, "int8")  # fmt: skip
        assert recipe.encoding(spec(role, *shape)).name == expected
        assert (Placement.of(role) is Placement.OFFLOADED) == (role in (Role.EMBEDDING, Role.PLE))


@pytest.mark.parametrize(
    ("role", "shape", "expected"),
    [
        (Role.ROUTER, (4, 2048), "int8"),
        (Role.ROUTER, (16, 4), "fp32"),  # AltUp's prediction coefficients
        (Role.SMALL, (64, 64), "int8"),  # 4096 values, just enough
        (Role.SMALL, (64, 32), "fp32"),
        (Role.SMALL, (512, 16), "fp32"),  # columns not a multiple of 32
        (Role.ALTUP, (8192,), "fp32"),  # a vector, whatever its role
    ],
)
def test_small_tensors_stay_float(role: Role, shape: tuple[int, ...], expected: str) -> None:
    assert Recipe.named("int4").encoding(spec(role, *shape)).name == expected


def test_vectors_stay_fp32_in_the_fp16_recipe() -> None:
    assert Recipe.named("fp16").encoding(spec(Role.ALTUP, 2048)).name == "fp32"
    assert Recipe.named("fp16").encoding(spec(Role.ALTUP, 16, 4)).name == "fp16"


def test_a_file_decides_as_it_says(tmp_path: Path) -> None:
    lines = INT8.replace('ffn = "int8"', 'ffn = { encoding = "int4-b64", search = "absmax" }')
    path = recipe_file(tmp_path, f'search = "mse"\n[roles]\n{lines}\n[floor]\nvalues = 100\n')
    recipe = Recipe.load(path)
    assert recipe.name == str(path)
    assert recipe.roles[Role.FFN].encoding.name == "int4-b64"
    assert recipe.roles[Role.FFN].search is Search.ABSMAX
    assert recipe.roles[Role.ATTENTION].search is Search.MSE
    assert recipe.floor == Floor(values=100)


def test_the_negative_control_can_be_asked_for(tmp_path: Path) -> None:
    lines = INT8.replace('ffn = "int8"', 'ffn = "int2"').replace('attention = "int8"', 'attention = "int2"')
    recipe = Recipe.load(recipe_file(tmp_path, f"[roles]\n{lines}"))
    assert recipe.encoding(spec(Role.FFN, 256, 128)).name == "int2"


def test_the_example_in_the_documentation_loads(tmp_path: Path) -> None:
    from gemma_edge.converter.quantize import recipes

    assert recipes.__doc__ is not None
    example = "\n".join(line[4:] for line in recipes.__doc__.splitlines() if line.startswith("    "))
    assert set(tomllib.loads(example)) == {"balance", "blocks", "hadamard", "search", "roles", "tensors", "floor"}
    assert Recipe.load(recipe_file(tmp_path, example)).roles[Role.FFN].encoding.name == "int4-b32"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('ffn = "int8"', "", "roles: ffn missing; add a line for each"),
        ("ffn =", "mlp =", "roles: found 'mlp', expected one of embedding, ple, head, attention, ffn, altup, small, "
         "router, norm, vision, audio, kernel; use one of these"),
        ('ffn = "int8"', 'ffn = "int5"', "roles.ffn.encoding: found encoding 'int5', expected one of fp32, fp16, int8, "
         "int4, int2, int4-b32, int4-b64, int4-b128, int4-b256, bf16, int8-b32, int8-b64, int8-b128, int8-b256"),
        ('ffn = "int8"', 'ffn = "int4-b48"', "roles.ffn.encoding: int4 has no blocks of 48; use 32, 64, 128 or 256"),
        ('ffn = "int8"', "ffn = 4", "roles.ffn: found 4, expected a table of keys; see "
         "converter/quantize/recipes.py for the form"),
        ('ffn = "int8"', "ffn = { encoding = 4 }",
         'roles.ffn.encoding: found 4, expected a name; use one such as "int4"'),
        ('ffn = "int8"', 'ffn = { encoding = "int4", block = 32 }',
         "roles.ffn: found key 'block', expected encoding, search, share; rename or remove it"),
        ('ffn = "int8"', 'ffn = { encoding = "int4", search = "best" }',
         "roles.ffn.search: found 'best', expected one of absmax, mse; use one of these"),
        ('ple = "int8"', 'ple = { encoding = "int4", placement = "resident" }',
         "roles.ple: found key 'placement', expected encoding, search, share; rename or remove it"),
        ('ffn = "int8"', 'ffn = { encoding = "int4", share = 20 }',
         "roles.ffn.share: found 20, expected a number between 0 and 1; change it"),
        ('ffn = "int8"', 'ffn = { encoding = "int4", share = true }',
         "roles.ffn.share: found True, expected a number between 0 and 1; change it"),
        ('ffn = "int8"', 'ffn = { encoding = "int8", share = 0.2 }',
         "roles.ffn.share: found with int8, expected int4; it says where 8 bits take its place, leave it out"),
        ('norm = "fp32"', 'norm = "fp16"', "roles.norm: found fp16, expected fp32; norms are vectors, never quantized"),
        ("[roles]", "roles = 3\n[other]",
         "found key 'other', expected search, blocks, hadamard, balance, roles, tensors, floor; rename or remove it"),
        ("[roles]", 'blocks = [33]\n[roles]',
         "blocks: found [33], expected a list of some of [32, 64, 128, 256]; change it"),
        ("[roles]", 'balance = 1\n[roles]', "balance: found 1, expected true or false; use one of these"),
        ("[roles]", 'hadamard = "ffn"\n[roles]',
         "hadamard: found 'ffn', expected a list of roles; use one such as [\"attention\", \"ffn\"]"),
        ("[roles]", 'hadamard = ["legs"]\n[roles]', "hadamard: found 'legs', expected one of embedding, ple, head, "
         "attention, ffn, altup, small, router, norm, vision, audio, kernel; use one of these"),
        ("[roles]", 'search = "octav"\n[roles]', "search: found 'octav', expected one of absmax, mse; "
         "use one of these"),
        ("[roles]", "[floor]\nvalues = 0\n[roles]",
         "floor.values: found 0, expected a whole number from 1; change it or leave it out"),
        ("[roles]", "[floor]\nrows = 1\n[roles]",
         "floor: found key 'rows', expected values, columns_multiple_of; rename or remove it"),
        ("[roles]", "[roles", "not TOML (Expected ']' at the end of a table declaration (at line 1, column 7)); "
         "use a TOML file with [roles]"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_name_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = f"[roles]\n{INT8}"
    assert old in text
    path = recipe_file(tmp_path, text.replace(old, new, 1))
    with pytest.raises(RecipeError) as refused:
        Recipe.load(path)
    assert str(refused.value) == f"{path}: {message}"


def test_a_recipe_for_text_does_for_text_and_not_for_towers(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, f"[roles]\n{INT8}")
    recipe = Recipe.load(path)
    assert recipe.encoding(spec(Role.FFN, 64, 1152)).name == "int8"
    with pytest.raises(RecipeError) as refused:
        recipe.encoding(spec(Role.VISION, 64, 1152))
    assert str(refused.value) == f"{path}: roles: vision missing; add a line for it, or leave layers.3.q out"
    assert recipe.overridden("vision=int8").encoding(spec(Role.VISION, 64, 1152)).name == "int8"


@pytest.mark.parametrize(
    ("layers", "width", "expected"), [(30, 256, "int4-b256"), (8, 32, "int4-b32"), (8, 48, "int4"), (1, 32, "int4")]
)
def test_each_layers_part_of_a_table_has_its_own_scale(layers: int, width: int, expected: str) -> None:
    name = "embed_tokens_per_layer.weight"
    spec = TensorSpec(name, name, (1000, layers * width), Role.PLE, parts=layers)
    assert Recipe.named("int4").encoding(spec).name == expected
    assert Recipe.named("int8").encoding(spec).name == "int8"


def test_kernels_are_floats_whatever_their_shape() -> None:
    for name, encoding in (("int4", "fp16"), ("int8", "fp16"), ("fp16", "fp16"), ("fp32", "fp32")):
        assert Recipe.named(name).encoding(spec(Role.KERNEL, 8, 3, 3, 4)).name == encoding


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"none\.toml: cannot be read as a recipe \(.*No such file.*\); use a TOML file"
    ):
        Recipe.load(tmp_path / "none.toml")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.named("int3")
    assert str(refused.value) == (
        "found recipe 'int3', expected fp32, fp16, int8, int4, int4-fast, bf16; "
        "for a file of your own use --recipe FILE"
    )


def test_a_shape_that_the_encoding_cannot_hold_is_refused_by_tensor(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, f"[roles]\n{INT8}".replace('ffn = "int8"', 'ffn = "int4-b256"'))
    with pytest.raises(RecipeError) as refused:
        Recipe.load(path).encoding(spec(Role.FFN, 64, 1152))
    assert str(refused.value) == (
        f"layers.3.q: 1152 columns do not split into blocks of 256; use 32, 64 or 128 (recipe {path}, roles.ffn)"
    )


def test_a_tensor_of_its_own_is_refused_by_its_own_key(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, f'[roles]\n{INT8}\n[tensors]\n"layers.3.q" = "int4-b256"')
    with pytest.raises(RecipeError) as refused:
        Recipe.load(path).encoding(spec(Role.FFN, 64, 1152))
    assert str(refused.value).endswith(f"use 32, 64 or 128 (recipe {path}, tensors.layers.3.q)")


def test_one_role_overridden() -> None:
    recipe = Recipe.named("int8").overridden("head=int4").overridden("ffn=int4-b32")
    assert recipe.name == "int8, head=int4, ffn=int4-b32"
    changed = {role: recipe.roles[role] for role in Role if recipe.roles[role] != Recipe.named("int8").roles[role]}
    assert {role: storage.encoding.name for role, storage in changed.items()} == {"head": "int4", "ffn": "int4-b32"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head", "--encoding head: expected ROLE=ENCODING, such as head=int4; put an = between them"),
        ("tail=int4", "--encoding tail=int4: found 'tail', expected one of embedding, ple, head, attention, ffn, "
         "altup, small, router, norm, vision, audio, kernel; use one of these"),
        ("head=int3", "--encoding head=int3: found encoding 'int3', expected one of"),
        ("kernel=int8", "int8, kernel=int8: roles.kernel: found int8, expected fp16 or fp32; kernels of convolutions "
         "stay floats"),
        ("norm=int8", "int8, norm=int8: roles.norm: found int8, expected fp32; norms are vectors, never quantized"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.named("int8").overridden(text)
    assert str(refused.value).startswith(message)


def test_a_small_part_of_a_model_keeps_8_bits() -> None:
    recipe, ffn = Recipe.named("int4"), spec(Role.FFN, 256, 128)
    for share, shown in ((0.16, "int8"), (0.3, "int4-b64")):
        assert recipe.for_shares({Role.HEAD: 1 - share, Role.FFN: share}).encoding(ffn).name == shown
    asked = recipe.overridden("ffn=int4-b32").for_shares({Role.HEAD: 1.0})
    assert asked.encoding(ffn).name == "int4-b32"  # what was asked for by name stays
    assert recipe.for_shares({Role.FFN: 1.0}).encoding(spec(Role.HEAD, 256, 128)).name == "int4-b64"


@pytest.mark.parametrize(("size", "shown"), [("e2b", "int4-b64"), ("e4b", "int4-b64"), ("1b", "int4-b64")])
def test_official_models_have_4_bits_in_their_layers(size: str, shown: str) -> None:
    model = official_model(size)
    target = Target.parse(f"{size}-int4")
    ffn = next(spec for spec in model.tensors.values() if spec.role is Role.FFN)
    assert target.recipe_for(model).encoding(ffn).name == shown
    assert 0.99 < sum(model.shares.values()) < 1.01
