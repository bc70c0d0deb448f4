"""Where a checkpoint comes from when it is no directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What a checkpoint that is no directory brings in place of one (see gguf/opened.py).

    files: everything that is read. side_path: a directory with what is made of them: config.json, tokenizer.json and
    so on. facts: for the report.
    """

    files: tuple[Path, ...]
    side_path: Path
    facts: Mapping[str, Any]
