"""What is suggested for a request that does not fit: each suggestion passes when followed, the cheapest comes first."""

import builtins
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_edge.converter.calibrate.planning import plan_for
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.encoders import Modality
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.gemma4_encoders.settings import MediaSettings
from gemma_edge.converter.models.matformer.slices import published
from gemma_edge.converter.models.official import OFFICIAL, official_model
from gemma_edge.converter.plan.door import needs_of
from gemma_edge.converter.plan.fit import Alternative, Distance, alternatives, fit_target
from gemma_edge.converter.plan.target import Target, TargetError
from gemma_edge.profiles.budget import MemoryBudget, OverBudget
from gemma_edge.profiles.sizes import GIB, MIB
from tools.synthetic import SIZES

PROFILE = """
description = "As large as a test needs"
architecture = "aarch64"
isa = ["neon"]
cores = 4
ram_bytes = "64 GiB"
budget_bytes = {budget_bytes}
memory_bytes_per_s = "15 GB"
storage_bytes_per_s = "500 MB"
"""


def needed_bytes(target: Target, model: Model | None = None) -> int:
    return needs_of(model or official_model(target.size), target).footprint.total_bytes


def nearest(target: Target, budget_bytes: int) -> list[Alternative]:
    return alternatives(target, official_model(target.size), MemoryBudget(budget_bytes))


def on(budget_bytes: int, **request: Any) -> Target:
    """A request on a profile of that budget."""
    target = Target.parse(**request)
    assert target.profile is not None
    return replace(target, profile=replace(target.profile, budget_bytes=budget_bytes, ram_bytes=64 * GIB))


# ---------------------------------------------------------------- footprints


@pytest.mark.parametrize("size", OFFICIAL)
def test_the_official_models_are_the_published_ones(size: str) -> None:
    config = SIZES[size].config
    published, ours = Model.of_checkpoint(config, MediaSettings()), official_model(size)
    assert ours.config == published.config
    assert [encoder.config for encoder in ours.encoders] == [encoder.config for encoder in published.encoders]


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
@pytest.mark.parametrize("request_", [{}, {"context": 256, "prefill": (8, 32)}, {"kv": "fp16"}])
def test_the_footprint_is_what_the_graphs_say(
    family: str, request_: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    plan = plan_for(Target.parse("custom-int4", **request_), request.getfixturevalue(f"tiny_{family}"))[1]
    parts = {part.name: part.total_bytes for part in plan.footprint.parts}
    assert parts["KV cache"] == plan.cache_bytes
    assert parts["decoder weights"] == plan.bytes_by("placement")["resident"]
    largest_ring = max(cache.nbytes for cache in plan.caches if cache.slots < plan.context_tokens)
    assert parts.get("KV rings being written", 0) == largest_ring * len(plan.target.prefill_tokens)
    assert plan.fitted.needs.bytes_per_token == parts["decoder weights"] + plan.cache_bytes


def test_an_onnx_directory_keeps_the_cache_that_layers_share_whole() -> None:
    """117.5 MiB is what our executor allocates for E2B; LiteRT needs 104."""
    for format_, kv_mib in (("onnx", 117.5), ("litertlm", 104)):
        footprint = needs_of(official_model("e2b"), Target.parse("e2b-int4", format=format_)).footprint
        assert next(part.anon_bytes for part in footprint.parts if part.name == "KV cache") == kv_mib * MIB


# ---------------------------------------------------------------- which, and in which order


def test_a_request_that_fits_stays_as_it_is() -> None:
    target = Target.parse("e2b-int4", profile="phone-2gb", fit=True)
    fitted = fit_target(target, official_model("e2b"))
    assert (replace(fitted.target, modalities=None), fitted.changes) == (target, "")
    assert fitted.target.modalities == fitted.model.modalities == tuple(Modality)


def test_without_a_profile_everything_fits() -> None:
    assert fit_target(Target.parse("e4b-fp32"), official_model("e4b")).changes == ""


def test_the_smaller_of_two_changes_comes_first() -> None:
    losses = [Distance(spans=1), Distance(prefill=2), Distance(context=1), Distance(weights=1), Distance(model=1)]
    assert all(less < more for less, more in pairwise(losses))
    assert Distance(context=9, prefill=9) < Distance(weights=1)


FIRST = [
    ({"target": "e2b-int4"}, -1, ["--spans none", "--prefill 16", "--context 2048", "--encoding attention=int4"]),
    (
        {"target": "e2b-int4", "context": 32_768},
        -850 * MIB,
        ["--context 16384 --spans none", "--context 16384 --prefill 16"],
    ),
    ({"target": "e2b-int4", "context": 3000, "prefill": (8, 64, 512)}, -1, ["--spans none", "--prefill 8,64"]),
    ({"target": "e2b-int4", "prefill": (128,)}, -1, ["--spans none", "--prefill 16"]),
    ({"target": "e2b-int4", "kv": "fp16"}, -1, ["--kv fp32"]),
    ({"target": "e2b-int8"}, -800 * MIB, ["--target e2b-int4"]),
    ({"target": "e4b-fp16"}, -3 * GIB, ["--target e4b-int8"]),
    (
        {"target": "e4b-int4"},
        -900 * MIB,
        ["--target e2.98-layer-int4 --encoding attention=int4 --context 2048 --prefill 16 --spans none"],
    ),
    ({"target": "1b-int4", "context": 1024, "prefill": (16,)}, -25 * MIB, ["--encoding attention=int4"]),
]


@pytest.mark.parametrize(("request_", "spare_bytes", "options"), FIRST, ids=[options[0] for _, _, options in FIRST])
def test_the_first_suggestions(request_: dict[str, Any], spare_bytes: int, options: list[str]) -> None:
    target = Target.parse(**request_)
    found = [alternative.options for alternative in nearest(target, needed_bytes(target) + spare_bytes)]
    assert found[: len(options)] == options


@pytest.mark.parametrize(("request_", "spare_bytes", "options"), FIRST, ids=[options[0] for _, _, options in FIRST])
def test_none_gives_up_more_than_another_and_losses_rise(
    request_: dict[str, Any], spare_bytes: int, options: list[str]
) -> None:
    target = Target.parse(**request_)
    losses = [alternative.distance for alternative in nearest(target, needed_bytes(target) + spare_bytes)]
    assert len(losses) >= len(options)
    assert losses == sorted(losses)
    assert not [(a, b) for a in losses for b in losses if a is not b and a.covers(b)]


def test_what_does_not_lower_the_footprint_is_not_suggested() -> None:
    """fp16 keys and values cost more than they save, and int4 embedding rows touch as many pages as int8 ones."""
    target = Target.parse("e2b-int4")
    assert needed_bytes(replace(target, kv=type(target.kv).FP16)) > needed_bytes(target)
    for budget_bytes in range(needed_bytes(target) - 1, 500 * MIB, -50 * MIB):
        options = [alternative.options for alternative in nearest(target, budget_bytes)]
        assert not [text for text in options if "--kv" in text or "embedding" in text]


def test_a_recipe_of_the_users_own_is_not_replaced(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text((Path(__file__).parents[3] / "converter" / "quantize" / "recipe_data" / "int8.toml").read_text())
    target = Target.parse("e4b-int8", recipe=recipe)
    options = [alternative.options for alternative in nearest(target, needed_bytes(target) - 100 * MIB)]
    assert options[0] == "--prefill 16"
    assert "--encoding attention=int4" in options
    assert not [text for text in options if "--target e4b" in text]


def test_a_model_of_the_users_own_has_no_smaller_one(tiny_gemma3n: Path) -> None:
    model = plan_for(Target.parse("custom-fp32"), tiny_gemma3n)[1].model
    target = Target.parse("custom-fp32")
    found = alternatives(target, model, MemoryBudget(needed_bytes(target, model) - 1))
    assert found
    assert not [alternative for alternative in found if alternative.distance.model]


def test_nothing_fits() -> None:
    with pytest.raises(OverBudget) as caught:
        fit_target(on(100 * MIB, target="1b-int4", fit=True, profile="phone-2gb"), official_model("1b"))
    assert caught.value.suggestions == ()
    assert str(caught.value).endswith("choose a smaller model, a shorter context or a larger profile")


# ---------------------------------------------------------------- what a user sees


@pytest.fixture
def directory(tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint directory of an official size that holds config.json and nothing else."""

    def make(size: str) -> Path:
        path = tmp_path / size
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(SIZES[size].config))
        return path

    return make


@pytest.mark.parametrize(
    "request_",
    [
        "--target e4b-int8 --profile phone-2gb",
        "--target e4b-int4 --profile phone-2gb --context 32768",
        "--target e2b-int8 --profile phone-2gb",
        "--target e2b-fp16 --profile phone-3gb --kv fp16",
        "--target e2b-int4 --profile phone-2gb --prefill 128,512",
        "--target 1b-fp32 --profile phone-2gb --context 32768",
        "--target e2b-int4 --profile phone-2gb --context 32768 --prefill 1,32,256 --draft 32",
        "--target gemma4-e2b-int4 --profile phone-2gb --context 32768 --prefill 1,256 --drafter DIR",
    ],
)
def test_suggestions_that_are_followed_pass(request_: str) -> None:
    """Each is appended to the command line as it stands; the footprint it promised is what is planned then."""

    def fitted(options: str) -> Any:
        command = main.commands["plan"]
        with command.make_context("plan", shlex.split(options)) as context:
            others = ("as_json", "checkpoint", "slices")
            request = {name: value for name, value in context.params.items() if name not in others}
        target = Target.parse(**request)
        return fit_target(target, target.official_model())

    with pytest.raises(OverBudget) as caught:
        fitted(request_)
    assert caught.value.suggestions
    for suggestion in caught.value.suggestions:
        kept = request_.replace("--drafter DIR", "") if suggestion.note == "without --drafter" else request_
        followed = fitted(f"{kept} {suggestion.label}")
        assert followed.changes == ""
        assert followed.needs.footprint == suggestion.footprint


def test_e4b_int8_is_refused_for_2_gb_from_config_json_alone(
    directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = directory("e4b")
    (checkpoint / "model.safetensors").write_bytes(b"not opened")
    opened = []

    def spy(original: Callable[..., Any]) -> Callable[..., Any]:
        def recording(path: Any, *arguments: Any, **options: Any) -> Any:
            opened.append(str(path))
            return original(path, *arguments, **options)

        return recording

    monkeypatch.setattr(io, "open", spy(io.open))  # what pathlib calls
    monkeypatch.setattr(builtins, "open", spy(builtins.open))
    monkeypatch.setattr(os, "open", spy(os.open))  # what shards are read with
    with pytest.raises(OverBudget) as caught:
        plan_for(Target.parse("e4b-int8", profile="phone-2gb"), checkpoint)
    assert [path for path in opened if path.startswith(str(checkpoint))] == [str(checkpoint / "config.json")]
    assert [suggestion.label for suggestion in caught.value.suggestions][-2:] == [
        "--target e2b-int4 --checkpoint google/gemma-3n-E2B-it",
        "--target 1b-int8 --checkpoint google/gemma-3-1b-it",
    ]


def test_a_refusal_does_not_wait_for_what_a_conversion_needs(directory: Callable[[str], Path]) -> None:
    """Half of the time went into importing these."""
    arguments = ["plan", "--target", "e4b-int8", "--checkpoint", str(directory("e4b")), "--profile", "phone-2gb"]
    program = (
        "import sys\nfrom gemma_edge.converter.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as exit: print(exit.code, sorted(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.startswith("1 [")
    for module in ("ai_edge_litert", "litert_lm_builder", "sentencepiece", "onnx", "jinja2", "huggingface_hub"):
        assert f"'{module}'" not in printed


def test_the_official_checkpoint_is_refused_before_it_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(*_: object) -> Path:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("gemma_edge.converter.calibrate.planning.resolve_checkpoint", no_download)
    with pytest.raises(OverBudget, match="e4b-int8 at 4096 tokens on phone-2gb: needs 4"):
        plan_for(Target.parse("e4b-int8", profile="phone-2gb"), None)


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
def test_an_official_model_is_planned_offline_on_the_base_install(container: str) -> None:
    """In a process that can neither reach the hub nor import an extra."""
    extras = ("ai_edge_litert", "litert_lm_builder", "onnx_ir", "sentencepiece", "tokenizers", "huggingface_hub")
    arguments = f"plan --target e2b-int4 --profile phone-2gb --format {container}".split()
    without = f"import sys\nsys.modules.update(dict.fromkeys({extras}))\nfrom gemma_edge.converter.cli import main\n"

    def printed(*more: str) -> str:
        command = [sys.executable, "-c", f"{without}main({[*arguments, *more]})"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tables = printed()
    assert "e2b-int4, context 4096" in tables
    assert "decode, predicted:" in tables
    assert "planned from the published configuration; add --checkpoint" in tables
    values = json.loads(printed("--json"))
    target = Target.parse("e2b-int4", profile="phone-2gb", format=container)
    assert values["footprint"]["anon_bytes"] == fit_target(target, official_model("e2b")).needs.footprint.anon_bytes


def test_the_refusal_on_the_command_line(directory: Callable[[str], Path]) -> None:
    arguments = ["plan", "--target", "e4b-int8", "--checkpoint", str(directory("e4b")), "--profile", "phone-2gb"]
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "250"})
    assert (result.exit_code, result.stdout) == (1, "")
    *tables, message = result.stderr.splitlines()
    assert message.startswith("error: e4b-int8 at 4096 tokens on phone-2gb: needs ")
    assert re.search(r" \(MMLU [\d.]+, the whole 62\.3\) would need [12]\.\d\d GiB", message)
    for text in ("decoder weights", "missing", "what would fit, cheapest loss first", "--target 1b-int8 --checkpoint"):
        assert [line for line in tables if text in line]


# ---------------------------------------------------------------- --fit


@pytest.fixture
def board(tiny_gemma3n: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A profile that lacks so many bytes for custom-int4 at 2048 tokens."""
    plan = plan_for(Target.parse("custom-int4"), tiny_gemma3n)[1]

    def write(missing_bytes: int) -> Path:
        path = tmp_path / "board.toml"
        path.write_text(PROFILE.format(budget_bytes=plan.footprint.total_bytes - missing_bytes))
        return path

    return write


def test_fit_makes_what_it_says(board: Callable[[int], Path], tiny_gemma3n: Path, tmp_path: Path) -> None:
    profile = str(board(1))
    fitted = convert("custom-int4", tiny_gemma3n, tmp_path / "fitted", profile=profile, fit=True)
    assert fitted.values["fit"] == "--spans none"
    assert fitted.values["spans_tokens"] == []
    asked = convert("custom-int4", tiny_gemma3n, tmp_path / "asked", spans=())
    assert asked.values["fit"] is None
    assert (tmp_path / "fitted").read_bytes() == (tmp_path / "asked").read_bytes()


def test_plan_says_what_fit_chose(board: Callable[[int], Path], tiny_gemma3n: Path) -> None:
    arguments = ["plan", "--target", "custom-int4", "--checkpoint", str(tiny_gemma3n), "--profile", str(board(1))]
    shown = CliRunner().invoke(main, [*arguments, "--fit"], env={"COLUMNS": "250"})
    assert shown.exit_code == 0, shown.stderr
    assert "chosen to fit: --spans none" in shown.stdout
    values = json.loads(CliRunner().invoke(main, [*arguments, "--fit", "--json"]).stdout)
    assert (values["fit"], values["spans_tokens"]) == ("--spans none", [])


def test_fit_keeps_the_model_and_the_format() -> None:
    cut = fit_target(Target.parse("e4b-int8", profile="phone-2gb", fit=True), official_model("e4b"))
    assert (cut.target.size, cut.target.slice) == ("e4b", published("e2.69"))
    with pytest.raises(OverBudget) as caught:
        fit_target(on(1200 * MIB, target="e2b-int4", profile="phone-2gb", fit=True), official_model("e2b"))
    assert caught.value.suggestions[0].label.startswith("--target 1b-")
    target = Target.parse("e2b-int4", format="onnx", context=8192)
    chosen = fit_target(
        on(needed_bytes(target) - 1, target="e2b-int4", format="onnx", context=8192, profile="phone-2gb", fit=True),
        official_model("e2b"),
    ).target
    assert (chosen.size, chosen.format) == ("e2b", target.format)


def test_fit_into_what() -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse("e2b-int4", fit=True)
    assert str(caught.value) == "fit: expected a profile to fit into, found none; add --profile"


# ---------------------------------------------------------------- predicted speed


def test_decode_is_predicted_for_a_profile(tiny_gemma3n: Path) -> None:
    plan = plan_for(Target.parse("custom-int4", profile="phone-2gb"), tiny_gemma3n)[1]
    read_bytes = plan.bytes_by("placement")["resident"] + plan.cache_bytes
    assert plan.predicted_decode_tokens_per_s == pytest.approx(15e9 / read_bytes)
    arguments = ["plan", "--target", "custom-int4", "--checkpoint", str(tiny_gemma3n)]
    shown = CliRunner().invoke(main, [*arguments, "--profile", "phone-2gb"], env={"COLUMNS": "250"}).stdout
    [rate] = re.findall(r"decode, predicted: about ([\d.,]+) tokens/s on phone-2gb", shown)
    assert float(rate.replace(",", "")) == pytest.approx(plan.predicted_decode_tokens_per_s, rel=0.05)
    assert "predicted" not in CliRunner().invoke(main, arguments).stdout
    assert plan_for(Target.parse("custom-int4"), tiny_gemma3n)[1].predicted_decode_tokens_per_s is None
