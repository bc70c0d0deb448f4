"""Bundles of the trained tiny checkpoints, converted once per test run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.convert import convert

CONTEXT_TOKENS = 512
PREFILL_TOKENS = (8, 32)
SPANS_TOKENS = (64, 192)


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path, tiny_gemma4: Path
) -> Callable[[str, str], Path]:
    """`tiny_bundle("gemma3n", "int4")`: context 512, window 64, rings of 96 slots, prefills of 8, 32; spans."""
    checkpoints = {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n, "gemma4": tiny_gemma4}
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(family: str, precision: str) -> Path:
        path = folder / f"{family}-{precision}.litertlm"
        if not path.exists():
            convert(
                f"custom-{precision}", checkpoints[family], path,
                context=CONTEXT_TOKENS, prefill=PREFILL_TOKENS, spans=SPANS_TOKENS,
            )  # fmt: skip
        return path

    return bundle


@pytest.fixture(scope="session")
def drafting_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path, tiny_gemma4: Path
) -> Callable[[str], Path]:
    """`drafting_bundle("gemma3n")`: as `tiny_bundle` in int4, with signatures that verify 4 and 8 tokens."""
    checkpoints = {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n, "gemma4": tiny_gemma4}
    folder = tmp_path_factory.mktemp("drafting")

    def bundle(family: str) -> Path:
        path = folder / f"{family}.litertlm"
        if not path.exists():
            convert(
                "custom-int4", checkpoints[family], path, measure=False,
                context=CONTEXT_TOKENS, prefill=PREFILL_TOKENS, spans=SPANS_TOKENS, draft=(4, 8),
            )  # fmt: skip
        return path

    return bundle


@pytest.fixture(scope="session")
def batching_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, tiny_gemma3n: Path, tiny_gemma4: Path
) -> Callable[[str], Path]:
    """`batching_bundle("gemma3n")`: int4, with steps of 2 and 4 conversations; Gemma 3n also verifies 4 tokens."""
    checkpoints = {"gemma3": tiny_gemma3, "gemma3n": tiny_gemma3n, "gemma4": tiny_gemma4}
    folder = tmp_path_factory.mktemp("batching")

    def bundle(family: str) -> Path:
        path = folder / f"{family}.litertlm"
        if not path.exists():
            convert(
                "custom-int4", checkpoints[family], path, measure=False,
                context=CONTEXT_TOKENS, prefill=PREFILL_TOKENS[1:], spans=SPANS_TOKENS[1:], batch=(2, 4),
                draft=(4,) if family == "gemma3n" else (),
            )  # fmt: skip
        return path

    return bundle


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3n: Path) -> Path:
    """Gemma 3n as an ONNX directory in float32."""
    out = tmp_path_factory.mktemp("onnx") / "model"
    convert("custom-fp32", tiny_gemma3n, out, context=CONTEXT_TOKENS, format="onnx")
    return out


@pytest.fixture(scope="module", params=["litertlm", "onnx"])
def tiny_model(request: pytest.FixtureRequest, tiny_bundle: Callable[[str, str], Path], tiny_directory: Path) -> Path:
    """Gemma 3n in float32, once in each format: a context of 512 tokens, rings of 96 slots, or 192."""
    return tiny_bundle("gemma3n", "fp32") if request.param == "litertlm" else tiny_directory


@pytest.fixture(scope="session")
def towers_bundle(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Path:  # noqa: ARG001  the tower is timm's
    """A tiny random Gemma 3n that sees and hears, in fp32: context 512."""
    from tools.tiny_towers import write_tiny_towers

    folder = tmp_path_factory.mktemp("towers")
    bundle, checkpoint = folder / "towers.litertlm", folder / "checkpoint"
    write_tiny_towers(checkpoint)
    convert("custom-fp32", checkpoint, bundle, prefill=(8, 32), context=512, modalities=("text", "vision", "audio"))
    return bundle
