"""Adapters that bring tokens, a tokenizer or a chat template of their own; PEFT's loading is what is right."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.lora import LoraError, merged
from gemma_edge.converter.convert import convert
from gemma_edge.converter.tokenizer.chat_template import bundle_template
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.converter.checkpoint.adapters import write_adapter
from tests.converter.verify.prompts.tuned import write

ROWS = 2052
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def trained(checkpoint: Path, directory: Path, rows: int | None = None, **settings: Any) -> Any:
    """An adapter in `directory`, with every trained value moved, and the model that PEFT makes of it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    usual = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(usual | settings)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(directory)
    return adapted.merge_and_unload()


def ends(model: Any) -> tuple[Any, Any]:
    return (
        model.get_input_embeddings().weight.detach().numpy(),
        model.get_output_embeddings().weight.detach().numpy(),
    )


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (ROWS, {}),
        (ROWS, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (ROWS, {"trainable_token_indices": [2048, 2050, 2051]}),
        (None, {"trainable_token_indices": [5, 900, 2047]}),
        (None, {"trainable_token_indices": {"embed_tokens": [0, 6]}}),
        (None, {"trainable_token_indices": [9, 7]}),
    ],
)
def test_tables_have_the_rows_that_peft_gives_them(
    rows: int | None, settings: dict[str, Any], tiny_gemma3: Path, tmp_path: Path
) -> None:
    expected = ends(trained(tiny_gemma3, tmp_path / "adapter", rows, **settings))
    source = merged(Checkpoint.open(tiny_gemma3), tmp_path / "adapter")
    assert source.text_config["vocab_size"] == len(expected[0])
    found = [source.read("embed_tokens.weight")]
    found.append(found[0] if source.text_config["tie_word_embeddings"] else source.read("lm_head.weight"))
    for table, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(table, right, atol=1e-6)
    streamed = np.concatenate([part.copy() for _, part in source.rows("embed_tokens.weight", 1 << 14)])
    np.testing.assert_array_equal(streamed, found[0])


def test_a_whole_conversion_has_the_new_tokens(tiny_gemma3: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_gemma3)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    trained(tiny_gemma3, tmp_path / "adapter", ROWS)
    tokenizer.save_pretrained(tmp_path / "adapter")
    convert(
        "custom-int8", tiny_gemma3, tmp_path / "model.litertlm", lora=tmp_path / "adapter", context=64, measure=False
    )

    model = TextModel(Bundle.open(tmp_path / "model.litertlm"))
    assert model.tokenizer.encode("<|im_start|>user\nHi<|im_end|>") == tokenizer.encode(
        "<|im_start|>user\nHi<|im_end|>", add_special_tokens=False
    )
    assert [2049] in model.eos_token_ids
    assert "im_start" in model.metadata.jinja_prompt_template


def in_file(adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text(CHATML)


def in_tokenizer(adapter: Path) -> None:
    shutil.copy(adapter.parent / "base" / "tokenizer.json", adapter)
    write(adapter / "tokenizer_config.json", chat_template=CHATML)


def as_processor(adapter: Path) -> None:
    write(adapter / "chat_template.json", chat_template=CHATML)


@pytest.mark.parametrize("put", [in_file, in_tokenizer, as_processor])
def test_the_adapters_chat_template_comes_first(put: Callable[[Path], None], tiny_gemma3: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_gemma3, tmp_path / "base"))
    adapter = write_adapter(tmp_path / "adapter", base)
    put(adapter)
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    source = merged(Checkpoint.open(base), adapter)
    assert "im_start" in bundle_template(source.side_path).source
    assert any(
        file.parent == adapter for file in source.input_files() if "template" in file.name or "json" in file.name
    )


def test_a_tokenizer_without_a_template_leaves_the_bases(tiny_gemma3: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_gemma3, tmp_path / "base"))
    write(base / "tokenizer_config.json", chat_template=CHATML)
    adapter = write_adapter(tmp_path / "adapter", base)
    shutil.copy(tiny_gemma3 / "tokenizer.json", adapter)
    shutil.copy(tiny_gemma3 / "tokenizer_config.json", adapter)
    source = merged(Checkpoint.open(base), adapter)
    assert "im_start" in bundle_template(source.side_path).source
    assert not (source.side_path / "tokenizer.model").exists()  # one tokenizer, not parts of two


def test_the_files_go_with_the_checkpoint(tiny_gemma3: Path, tmp_path: Path) -> None:
    source = merged(Checkpoint.open(tiny_gemma3), write_adapter(tmp_path / "adapter", tiny_gemma3))
    directory = source.side_path
    assert directory.is_dir()
    del source
    assert not directory.exists()


@pytest.mark.parametrize("value", ["5", [1.5], [-1], {"embed_tokens": 5}])
def test_token_ids_that_are_none(value: object, tiny_gemma3: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", tiny_gemma3, trainable_token_indices=value)
    with pytest.raises(LoraError, match=r"trainable_token_indices is .*, expected token ids, or a list of them"):
        merged(Checkpoint.open(tiny_gemma3), adapter)


def test_rows_for_other_tokens_than_were_trained(tiny_gemma3: Path, tmp_path: Path) -> None:
    trained(tiny_gemma3, tmp_path / "adapter", trainable_token_indices=[5, 6])
    write(tmp_path / "adapter" / "adapter_config.json", trainable_token_indices=[5, 6, 7])
    with pytest.raises(LoraError, match=r"trainable_tokens_delta \[2, 128\] does not fit trainable_token_indices in"):
        merged(Checkpoint.open(tiny_gemma3), tmp_path / "adapter")
