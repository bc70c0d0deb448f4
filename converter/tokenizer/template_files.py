"""Which chat templates a checkpoint has, and the special tokens they are given, read as transformers reads them.

As in transformers 5.23, tokenization_utils_base.py: chat_template.jinja and additional_chat_templates/*.jinja come
before tokenizer_config.json's chat_template (a text, or a list of named ones). A processor's chat_template.json is the
oldest place and the last.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain, read_plain_text

DEFAULT, TOOL_USE = "default", "tool_use"  # transformers takes the second, where there is one, when tools are given


class ChatTemplateError(GemmaEdgeError):
    """The checkpoint's chat template cannot be used on the device."""


def checkpoint_templates(checkpoint: Path) -> dict[str, str]:
    """Name -> Jinja source; empty where the checkpoint has none, else with "default" among the names.

    Raises ChatTemplateError: an unreadable file, something that is no template, none named default.
    """
    named = {path.stem: _text(path) for path in sorted((checkpoint / "additional_chat_templates").glob("*.jinja"))}
    if (path := checkpoint / "chat_template.jinja").exists():
        named[DEFAULT] = _text(path)
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not named:
            named = _listed(checkpoint / name)
    if named and DEFAULT not in named:
        raise ChatTemplateError(
            f"{checkpoint}: found the chat templates {', '.join(sorted(named))}, expected one named default; name it so"
        )
    return named


def special_tokens(checkpoint: Path) -> dict[str, str]:
    """ "bos_token" -> "<bos>" and so on: what transformers hands to a template beside the messages."""
    found = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}  # GemmaTokenizer's
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _object(checkpoint / name).items():
            text = value.get("content") if isinstance(value, dict) else value  # an AddedToken, or its text
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _listed(path: Path) -> dict[str, str]:
    template = _object(path).get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {DEFAULT: template}
    entries = template if isinstance(template, list) else [template]
    named: dict[Any, Any] = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    wrong = next((part for pair in named.items() for part in pair if not isinstance(part, str)), None)
    if not isinstance(template, list) or len(named) != len(template) or wrong is not None:
        found = template if wrong is None or isinstance(template, dict) else wrong
        raise ChatTemplateError(
            f"{path}: chat_template is {str(found)[:40]!r}, expected a text, or a list of named ones; "
            "download the file again"
        )
    return named


def _object(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(read_plain(path))
        content.get("")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ChatTemplateError(f"{path}: unreadable ({error}); download the file again") from error
    return dict(content)


def _text(path: Path) -> str:
    try:
        return read_plain_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ChatTemplateError(f"{path}: unreadable ({error}); download the file again") from error
