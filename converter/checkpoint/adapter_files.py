"""What an adapter's directory brings beside weights: the tokenizer and the chat template that it was trained with.

transformers and vLLM load them from there where they are. A directory is made of the base's small files and these, and
of a config.json that knows what the adapter changed (rows for new tokens, a head of its own).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gemma_edge.converter.checkpoint.checkpoint import SIDE_FILES, read_json_object
from gemma_edge.converter.checkpoint.scratch import Scratch

_TOKENIZER: Final = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_TEMPLATE: Final = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


class SideFiles:
    """A temporary directory; it goes when this does."""

    def __init__(self, base: Path, adapter: Path, config: Mapping[str, Any]) -> None:
        """base: directory of the base's small files. config: of the merged model."""
        self._scratch = Scratch()
        self.path = self._scratch.path
        has_tokenizer = any((adapter / name).is_file() for name in _TOKENIZER[:2])
        own = [name for name in _TOKENIZER if has_tokenizer and (adapter / name).is_file()]
        settings = read_json_object(adapter / _TOKENIZER[2]) if _TOKENIZER[2] in own else {}
        has_template = "chat_template" in settings or any((adapter / name).exists() for name in _TEMPLATE)
        if has_template:
            own += [name for name in _TEMPLATE if (adapter / name).exists()]
        replaced = {*(_TOKENIZER if has_tokenizer else ()), *(_TEMPLATE if has_template else ())}
        self.files = [adapter / name for name in own if (adapter / name).is_file()]
        self.replaced = frozenset(replaced)
        for name in (*SIDE_FILES, _TEMPLATE[2]):
            source = adapter / name if name in own else base / name
            if source.exists() and (name in own or name not in replaced):
                (self.path / name).symlink_to(source.absolute())
        if has_tokenizer and not has_template and _TOKENIZER[2] in own:
            before = base / _TOKENIZER[2]
            if before.is_file() and (template := read_json_object(before).get("chat_template")) is not None:
                self._write(_TOKENIZER[2], {**settings, "chat_template": template})
        self._write("config.json", config)

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        (self.path / name).unlink(missing_ok=True)
        (self.path / name).write_text(json.dumps(dict(values)))
