"""The small files beside a checkpoint's weights, read as transformers reads them and not as the converter does.

What a bundle must do with prompts is worked out from these files a second time, so that a mistake of the converter
shows. Nothing here imports the converter's own reading of tokenizers, templates or stop tokens.
"""

import json
from pathlib import Path
from typing import Any

from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.profiles.plain_file import read_plain, read_plain_text


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file. Raises VerifyError naming it."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError) as error:
        raise VerifyError(f"{path}: cannot be read as JSON ({error}); download the file again") from error
    if not isinstance(content, dict):
        raise VerifyError(f"{path}: found a {type(content).__name__}, expected an object; download the file again")
    return content


def read_template(path: Path) -> str:
    """The text of a template file. Raises VerifyError naming it."""
    try:
        return read_plain_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise VerifyError(f"{path}: cannot be read as UTF-8 text ({error}); download the file again") from error


def special_tokens(checkpoint: Path) -> dict[str, str]:
    """ "bos_token" -> "<bos>" and so on: tokenizer_config.json's, else special_tokens_map.json's."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_object(checkpoint / name).items():
            text = value.get("content") if isinstance(value, dict) else value  # an AddedToken or its text
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found
