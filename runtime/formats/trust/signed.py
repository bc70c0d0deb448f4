"""Whether a bundle is what the owner of a key has signed: OpenSSF model signing, its method of keys, offline.

The signature lies beside the bundle, NAME.sig; `gemma-edge sign` writes it, and any tool of the package model-signing.
"""

import os
from pathlib import Path
from typing import Any, Final

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import require_plain

SIGNATURE: Final = ".sig"
TRUSTED_KEY: Final = "GEMMA_EDGE_TRUSTED_KEY"
"""The environment variable that names the public key without whose signature an Engine loads nothing."""


class SignatureError(GemmaEdgeError):
    """No usable key, or not what was signed with it."""


class PublicKey:
    """An elliptic-curve key (P-256, P-384 or P-521) in PEM, read once. Raises SignatureError where it is none."""

    def __init__(self, path: Path) -> None:
        try:
            from model_signing import verifying
        except ImportError as error:
            raise SignatureError(
                f"{path}: checking signatures needs the package model-signing; pip install 'gemma-edge[sign]'"
            ) from error
        try:
            require_plain(path)
            self._config: Any = verifying.Config().use_elliptic_key_verifier(public_key=path)
        except OSError as error:
            raise SignatureError(f"{path}: cannot be read ({error.strerror}); name a public key") from error
        except Exception as error:  # whatever a library says of a key
            raise SignatureError(f"{path}: not a public key ({error}); name that of whoever signed") from error

    def check(self, path: Path) -> None:
        """`path`, a file or a directory, against the signature beside it; reads all of it.

        Raises SignatureError: one of them is missing, or the file is not what was signed with this key.
        """
        signature = path.with_name(path.name + SIGNATURE)
        for needed in (path, signature):
            if not needed.exists():
                raise SignatureError(f"{needed}: missing; without it {path.name} cannot be trusted")
        try:
            self._config.verify(path, signature)
        except Exception as error:  # anything a hostile file makes a library say is a refusal
            said = str(error) or type(error).__name__
            raise SignatureError(f"{path}: not what was signed ({said}); get it again from its maker") from error


def check_trusted(model_path: str | Path, key: str | os.PathLike[str] | None = None) -> None:
    """Check a model against a public key; by default the one that the environment names, if it does.

    Raises SignatureError.
    """
    if named := key or os.environ.get(TRUSTED_KEY):
        PublicKey(Path(named)).check(Path(model_path))
