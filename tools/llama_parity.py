"""Run a GGUF of ours in llama.cpp and the same checkpoint as a bundle of ours in LiteRT, and compare what they say.

    pip install llama-cpp-python  # built from source: about 7 minutes of one core
    python -m tools.llama_parity CHECKPOINT WORK [--tokens 32] [--int4]
    python -m tools.llama_parity e2b-numbers WORK  # a random Gemma 3n that llama.cpp runs

Greedy text in F16: every token must be one and the same, but where two are as good as each other (margin). With --int4
also KL(checkpoint || ours) and KL(checkpoint || llama.cpp) of the same Q4_0 codes over the built-in text of `verify`,
both with the rounding of inputs that their kernels do. llama.cpp is asked for float32 keys and values. Prints JSON;
exits with 1 where a token differs.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.tokenizer.windows import token_windows
from gemma_edge.converter.verify.measure.scores import log_softmax
from gemma_edge.converter.verify.measure.text import builtin_text
from gemma_edge.runtime import Backend, Engine
from gemma_edge.runtime.memory.reading import read_memory
from tools.tiny import F, S, Tiny, gemma3n_config, write_tiny

Float32 = NDArray[np.float32]

PROMPTS = ("In the beginning", "The capital of France is", "Once upon a time")
MARGIN = 2e-2
"""Of logits: half precision moves them by as much, so that two tokens this close may change places."""
INT4 = """
balance = true
[roles]
embedding = "int8"
ple = "int4"
head = "int8"
attention = "int4-b32"
ffn = "int4-b32"
altup = "int8"
small = "int8"
router = "int8"
norm = "fp32"
[floor]
values = 4096
columns_multiple_of = 32
"""


E2B_NUMBERS = Tiny(
    gemma3n_config(
        vocab_size=2048,
        hidden_size=128,
        hidden_size_per_layer_input=256,
        num_hidden_layers=30,
        num_kv_shared_layers=10,
        laurel_rank=64,
        layer_types=[S, S, S, S, F] * 6,
        activation_sparsity_pattern=[0.95] * 10 + [0.0] * 20,
        tie_word_embeddings=False,  # tied, this small stream would echo one token
    ),
    gain=0.3,
)
"""With the numbers of Gemma 3n E2B that llama.cpp has fixed in its code: see fixed_elsewhere in checkpoint/gguf."""


class Llama:
    """A GGUF in llama.cpp."""

    def __init__(self, path: Path, context_tokens: int = 512) -> None:
        import llama_cpp  # type: ignore[import-not-found]  # built by whoever runs this

        before = read_memory()
        self._llama: Any = llama_cpp.Llama(
            str(path), n_ctx=context_tokens, n_threads=2, logits_all=True, verbose=False, type_k=0, type_v=0
        )
        self.loaded_anon_bytes = read_memory().anon_bytes - before.anon_bytes

    def logits(self, token_ids: list[int]) -> Float32:
        """[T, V] of a text of its own."""
        self._llama.reset()
        self._llama.eval(token_ids)
        return np.array(self._llama.scores[: len(token_ids)], np.float32)

    def greedy(self, token_ids: list[int], count: int) -> tuple[list[int], list[float]]:
        """The continuation, and how far each token is ahead of the next best."""
        self._llama.reset()
        self._llama.eval(token_ids)
        tokens, margins = [], []
        for _ in range(count):
            row = np.array(self._llama.scores[self._llama.n_tokens - 1])
            first, second = np.argsort(row)[-2:][::-1]
            tokens.append(int(first))
            margins.append(float(row[first] - row[second]))
            self._llama.eval([int(first)])
        return tokens, margins

    def tokenize(self, text: str) -> list[int]:
        """With the start token."""
        ids: list[int] = self._llama.tokenize(text.encode(), add_bos=True, special=True)
        return ids


def ours_greedy(engine: Engine, token_ids: list[int], count: int) -> list[int]:
    """The most likely continuation, stop tokens included."""
    sequence = engine.new_sequence()
    sequence.append(token_ids)
    for _ in range(count):
        sequence.append([int(sequence.logits().argmax())])
    return list(sequence.token_ids[len(token_ids) :])


def greedy_figures(checkpoint: Path, work: Path, count: int) -> list[dict[str, Any]]:
    """Of each prompt: both continuations in F16, and where they part."""
    common: dict[str, Any] = {"measure": False}
    convert("custom-fp16", checkpoint, work / "f16.gguf", **common)
    convert("custom-fp16", checkpoint, work / "f16.litertlm", context=512, **common)
    llama, rows = Llama(work / "f16.gguf"), []
    with Engine(str(work / "f16.litertlm"), Backend.CPU(thread_count=2)) as engine:
        for prompt in PROMPTS:
            ids = [*engine.text_model.start_tokens, *engine.tokenize(prompt)]
            theirs, margins = llama.greedy(ids, count)
            ours = ours_greedy(engine, ids, count)
            same = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), count)
            rows.append(
                {
                    "prompt": prompt,
                    "same_ids_for_prompt": llama.tokenize(prompt) == ids,
                    "same_tokens": same,
                    "margin_where_they_part": None if same == count else margins[same],
                    "text": engine.text_model.tokenizer.decode(ours),
                }
            )
    return rows


def kl_figures(checkpoint: Path, work: Path, tokens: int) -> dict[str, Any]:
    """KL of our int4 and of llama.cpp's with the same codes, against the checkpoint in numpy."""
    (work / "int4.toml").write_text(INT4)
    common: dict[str, Any] = {"recipe": work / "int4.toml", "measure": False}
    convert("custom-int4", checkpoint, work / "q4_0.gguf", **common)
    convert("custom-int4", checkpoint, work / "q4_0.litertlm", context=512, **common)
    source = Checkpoint.open(checkpoint)
    model = StreamingModel.open(source)
    vocabulary = model.model.config.vocab_size
    windows = token_windows(builtin_text(), "text", source.side_path, vocabulary, tokens=64, count=tokens // 64)
    started = time.monotonic()
    llama, sums, count = Llama(work / "q4_0.gguf"), {"ours": 0.0, "llama.cpp": 0.0}, 0
    with Engine(str(work / "q4_0.litertlm"), Backend.CPU(thread_count=2)) as engine:
        for window in windows:
            ids = [int(token) for token in window]
            expected = np.concatenate([rows for _, rows in model.run(window[np.newaxis])])
            theirs, sequence = llama.logits(ids), engine.new_sequence()
            for position, token in enumerate(ids):
                sequence.append([token])
                p = log_softmax(expected[position])
                for name, row in (("ours", sequence.logits()), ("llama.cpp", theirs[position])):
                    sums[name] += float(np.exp(p) @ (p - log_softmax(row)))
                count += 1
    kl = {name: total / count for name, total in sums.items()}
    return {
        "tokens": count,
        "kl": kl,
        "ratio": kl["llama.cpp"] / kl["ours"],
        "llama_anon_bytes_loaded": llama.loaded_anon_bytes,
        "gguf_bytes": (work / "q4_0.gguf").stat().st_size,
        "seconds": time.monotonic() - started,
    }


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--tokens", default=32, show_default=True, help="Of each greedy text.")
@click.option("--int4", is_flag=True, help="Measure int4's KL as well.")
@click.option("--kl-tokens", default=512, show_default=True, help="Tokens that KL is measured on.")
def main(checkpoint: Path, work: Path, tokens: int, int4: bool, kl_tokens: int) -> None:
    """Compare llama.cpp with us on CHECKPOINT; files are written into WORK."""
    work.mkdir(parents=True, exist_ok=True)
    if str(checkpoint) == "e2b-numbers":
        checkpoint = work / checkpoint
        write_tiny(E2B_NUMBERS, checkpoint)
    greedy = greedy_figures(checkpoint, work, tokens)
    values: dict[str, Any] = {"greedy": greedy} | ({"int4": kl_figures(checkpoint, work, kl_tokens)} if int4 else {})
    click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    sys.exit(any((row["margin_where_they_part"] or 0) > MARGIN or not row["same_ids_for_prompt"] for row in greedy))


if __name__ == "__main__":
    main()
