"""Checkpoints as fine-tunes leave them: other chat templates, added tokens, other ends of a reply."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.converter.verify.wrong import Tensors, copied, rewritten

START, END = "<|im_start|>", "<|im_end|>"  # ids 2048 and 2049, behind the fixtures' vocabulary

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ raise_exception('no system message') if messages[0]['role'] == 'system' else '' }}"
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ (m['content'] if m['content'] is string else m['content'][0]['text']) | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def write(path: Path, **values: Any) -> None:
    """Add to a JSON file, or begin one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def added(text: str, number: int, **flags: bool) -> dict[str, Any]:
    """An entry of tokenizer.json's added_tokens."""
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": text, **usual, **flags}


def with_tokens(checkpoint: Path, *tokens: dict[str, Any]) -> Path:
    """Add tokens to its tokenizer.json; the checkpoint itself."""
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] += tokens
    path.write_text(json.dumps(content))
    return checkpoint


def chatml(checkpoint: Path, directory: Path) -> Path:
    """A copy of tiny-gemma3 that was taught ChatML, with rows for two added tokens. Ends a turn with <|im_end|>."""

    def grown(tensors: Tensors) -> Tensors:
        table = tensors["embed_tokens.weight"]
        return tensors | {"embed_tokens.weight": np.concatenate([table, table[10:12]])}

    tuned = rewritten(checkpoint, directory, grown, vocab_size=2050)
    with_tokens(tuned, added(START, 2048), added(END, 2049))
    write(tuned / "tokenizer_config.json", eos_token=END)
    write(tuned / "generation_config.json", eos_token_id=[1, 2049])
    (tuned / "chat_template.jinja").write_text(CHATML)
    return tuned


def with_template(checkpoint: Path, directory: Path, template: str) -> Path:
    """A copy with a chat template."""
    tuned = copied(checkpoint, directory)
    (tuned / "chat_template.jinja").write_text(template)
    return tuned
