"""Digests of what is run from an ONNX directory, in `digests.json` since gemma-edge writes that:

    {"sha256": {"onnx/model_q4.onnx": "...", "onnx/model_q4.onnx_data": "...", "tokenizer.model": "...", ...}}

Graphs, weights, SentencePiece model and LlmMetadata are listed; JSON files, which people edit, are not. ONNX Runtime
checks no digest: with a flipped byte it computes nonsense.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain

DIGESTS = "digests.json"
_SHA256 = re.compile("[0-9a-f]{64}")


class OnnxDirectoryError(GemmaEdgeError, RuntimeError):
    """The directory is not an ONNX model of ours, is damaged, or is of a version that is not known."""


@dataclass(frozen=True)
class Digests:
    """The SHA-256 of each listed file by its name within the directory. recorded: None of a directory without them."""

    path: Path
    recorded: Mapping[str, str] | None

    @classmethod
    def read(cls, path: Path) -> "Digests":
        """Of the directory `path`. Raises OnnxDirectoryError where they are damaged."""
        file = path / DIGESTS
        try:
            values: Any = json.loads(read_plain(file))
        except FileNotFoundError:
            return cls(path, None)
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no JSON"
            raise OnnxDirectoryError(f"{file}: cannot be read ({reason}); copy the file again") from error
        recorded = values.get("sha256") if isinstance(values, dict) else None
        if not isinstance(recorded, dict) or not all(
            isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in recorded.values()
        ):
            raise OnnxDirectoryError(f"{file}: not a list of SHA-256 digests by file name; copy the file again")
        return cls(path, recorded)

    @staticmethod
    def written(recorded: Mapping[str, str]) -> bytes:
        """What `read` reads."""
        return f"{json.dumps({'sha256': dict(recorded)}, indent=2)}\n".encode()

    def check_content(self, name: str, content: bytes) -> None:
        """Raises OnnxDirectoryError unless these bytes are those of the file at conversion."""
        if self.recorded is not None:
            self.check(name, hashlib.sha256(content).hexdigest())

    def check(self, name: str, sha256: str) -> None:
        """Raises OnnxDirectoryError unless this is the digest of the file at conversion."""
        if self.recorded is None:
            return
        expected = self.recorded.get(name)
        if expected is None:
            raise OnnxDirectoryError(f"{self.path / name}: not listed in {DIGESTS}; convert the checkpoint again")
        if sha256 != expected:
            raise OnnxDirectoryError(
                f"{self.path / name}: SHA-256 {sha256[:16]}..., {DIGESTS} records {expected[:16]}...; "
                "copy the file again"
            )
