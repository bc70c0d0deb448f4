"""What quantization does to the trained fixtures, in LiteRT and in ONNX Runtime, on held-out text.

The fixtures are tiny: this checks the converter, it says nothing of Gemma's quality. The gates are several times what
the recipes reach (KL 0.0001 and 0.003), and a bundle with 2-bit matrices shows that they can fail.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.executors.base import KvSlot
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.executors.litert.slot import LitertSlot
from gemma_edge.runtime.executors.onnx.slot import OnnxSlot
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.slots import litert_slot, onnx_slot

WINDOW_TOKENS = 256  # each is a text of its own, four sliding windows long
WINDOWS = 16  # 4,096 tokens are enough for gates so wide

INT2 = """\
[roles]
embedding = "int8"
ple = "int4"
head = "int8"
attention = "int2"
ffn = "int2"
altup = "int8"
small = "int8"
router = "int8"
norm = "fp32"
[floor]
values = 4096
columns_multiple_of = 32
"""


@dataclass(frozen=True)
class Quality:
    """A bundle against transformers in float32, over all tokens."""

    kl: float  # mean KL(transformers || bundle), nats
    top1: float  # share of positions with the same most likely token
    perplexity_ratio: float

    def passes(self, kl: float, top1: float) -> bool:
        return self.kl <= kl and self.top1 >= top1 and abs(self.perplexity_ratio - 1) <= 0.02


@dataclass(frozen=True)
class Fixture:
    """A checkpoint, held-out text [windows, tokens] and transformers' log-probabilities [windows, tokens, V]."""

    path: Path
    text: NDArray[np.int64]
    expected: NDArray[np.float32]


@pytest.fixture(scope="module", params=["tiny-gemma3", "tiny-gemma3n"])
def fixture(request: pytest.FixtureRequest, val_bin: Path) -> Fixture:
    path = val_bin.parent / request.param
    text = np.fromfile(val_bin, np.uint16)[: WINDOWS * WINDOW_TOKENS].astype(np.int64).reshape(WINDOWS, WINDOW_TOKENS)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = [model(torch.tensor(window[None])).logits[0] for window in text]
        expected = torch.stack(logits).log_softmax(-1).numpy()
    return Fixture(path, text, expected)


def open_executor(model: Path, cache_dir: Path) -> LitertSlot | OnnxSlot:
    """What runs a bundle, or a directory."""
    if model.is_dir():
        return onnx_slot(OnnxDirectory.open(model), 2, None, WINDOW_TOKENS)
    return litert_slot(DecoderSections.of(Bundle.open(model)), 2, cache_dir)


def log_probabilities(executor: KvSlot, text: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of what follows each token, [len(text), V]."""
    executor.reset()
    logits = np.stack([executor.decode(int(token)) for token in text])
    logits -= logits.max(1, keepdims=True)
    found: NDArray[np.float32] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return found


def measure(fixture: Fixture, model: Path, cache_dir: Path, windows: int) -> Quality:
    """Decode every token of the first `windows` windows and compare the distributions that follow."""
    executor = open_executor(model, cache_dir)
    kl, same, surprise = [], [], []
    for text, expected in zip(fixture.text[:windows], fixture.expected, strict=False):
        found = log_probabilities(executor, text)
        kl.append((np.exp(expected) * (expected - found)).sum(1))
        same.append(found.argmax(1) == expected.argmax(1))
        following = (np.arange(WINDOW_TOKENS - 1), text[1:])
        surprise.append((expected[following] - found[following]).mean())
    executor.close()
    return Quality(float(np.mean(kl)), float(np.mean(same)), float(np.exp(np.mean(surprise))))


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
@pytest.mark.parametrize(("precision", "kl", "top1"), [("int8", 0.003, 0.98), ("int4", 0.012, 0.9)])
def test_quantized_bundle_stays_close(
    fixture: Fixture, container: str, precision: str, kl: float, top1: float, tmp_path: Path
) -> None:
    convert(f"custom-{precision}", fixture.path, tmp_path / "model", prefill=(16,), format=container)
    quality = measure(fixture, tmp_path / "model", tmp_path, WINDOWS)
    print(f"{fixture.path.name} {container} {precision}: {quality}")
    assert quality.passes(kl, top1), quality


@pytest.mark.parametrize("container", ["litertlm", "onnx"])
def test_two_bits_fail_the_same_check(fixture: Fixture, container: str, tmp_path: Path) -> None:
    (tmp_path / "int2.toml").write_text(INT2)
    recipe = tmp_path / "int2.toml"
    convert("custom-int4", fixture.path, tmp_path / "model", prefill=(16,), recipe=recipe, format=container)
    quality = measure(fixture, tmp_path / "model", tmp_path, windows=16)
    print(f"{fixture.path.name} {container} int2: {quality}")
    assert not quality.passes(0.012, 0.9), quality


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_both_runtimes_agree_on_one_recipe(fixture: Fixture, precision: str, tmp_path: Path) -> None:
    """int4 has blocks in ONNX and rows in LiteRT; either rounds activations to int8 in its own groups."""
    found = {}
    for container in ("litertlm", "onnx"):
        model = tmp_path / container
        convert(f"custom-{precision}", fixture.path, model, prefill=(16,), format=container)
        executor = open_executor(model, tmp_path)
        found[container] = np.concatenate([log_probabilities(executor, text) for text in fixture.text[:8]])
        executor.close()
    kl = (np.exp(found["litertlm"]) * (found["litertlm"] - found["onnx"])).sum(1).mean()
    print(f"{fixture.path.name} {precision}: KL(LiteRT || ONNX) {kl}")
    assert kl <= 0.01
