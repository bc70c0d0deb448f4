"""The documents beside a bundle, and its signatures.

A signature is a file of OpenSSF model signing (the package model-signing, its method of keys): one over the bundle, by
which any of that package's tools knows it, and one over the provenance statement, which has the digests of the bundle
and of the other documents.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from gemma_edge.converter.provenance.bill import bill
from gemma_edge.converter.provenance.card import card
from gemma_edge.converter.provenance.facts import Facts, ProvenanceError
from gemma_edge.converter.provenance.statement import statement
from gemma_edge.profiles.plain_file import open_plain, read_plain, require_plain
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.formats.digest import sha256_of
from gemma_edge.runtime.formats.trust.signed import SIGNATURE, PublicKey

PROVENANCE: Final = ".provenance.json"
BILL: Final = ".cdx.json"
CARD: Final = ".README.md"
PASSWORD: Final = "GEMMA_EDGE_KEY_PASSWORD"
"""Of an encrypted private key: the environment's, as a command line is everybody's to read."""


def beside(bundle: Path, suffix: str) -> Path:
    """model.litertlm -> model.litertlm.provenance.json."""
    return bundle.with_name(bundle.name + suffix)


def describe(bundle: Path, base_model: str | None = None) -> list[Path]:
    """Write the bill of materials, the card and the provenance statement; their paths.

    base_model: on the hub; left out, the official model whose size the target names.
    Raises ProvenanceError, OutputError.
    """
    facts = Facts.of(bundle, base_model)
    contents = {BILL: _json(bill(facts)), CARD: card(facts).encode()}
    digests = {beside(bundle, key).name: hashlib.sha256(text).hexdigest() for key, text in contents.items()}
    contents[PROVENANCE] = _json(statement(facts, digests))
    for suffix, content in contents.items():
        with atomic_file(beside(bundle, suffix)) as file:
            file.write(content)
    return [beside(bundle, suffix) for suffix in contents]


def _json(values: dict[str, Any]) -> bytes:
    return f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode()


@dataclass(frozen=True)
class PrivateKey:
    """An elliptic-curve key (P-256, P-384 or P-521) in PEM, read once, before anything is written."""

    _config: Any

    @classmethod
    def load(cls, path: Path) -> "PrivateKey":
        """Raises ProvenanceError where it is none, or the password is wrong."""
        from model_signing import signing

        password = os.environ.get(PASSWORD)
        secret: Any = (
            None if password is None else password.encode()
        )  # as cryptography wants it, which gets it as it is
        try:
            require_plain(path)
            return cls(signing.Config().use_elliptic_key_signer(private_key=path, password=secret))
        except OSError as error:
            raise ProvenanceError(f"{path}: cannot be read ({error.strerror}); name a private key") from error
        except Exception as error:  # whatever a library says of a key
            raise ProvenanceError(
                f"{path}: not a private key that can sign ({error}); make one with "
                "`openssl ecparam -name prime256v1 -genkey -noout`"
            ) from error

    def sign(self, bundle: Path) -> list[Path]:
        """Sign the bundle and its provenance; the signatures' paths. Raises ProvenanceError, OutputError."""
        written = []
        for path in (bundle, beside(bundle, PROVENANCE)):
            signature = beside(path, SIGNATURE)
            with TemporaryDirectory() as folder, atomic_file(signature) as file:
                made = Path(folder) / signature.name
                try:
                    self._config.sign(path, made)
                except ValueError as error:  # a link, which is refused
                    raise ProvenanceError(f"{path}: cannot be signed ({error}); name the file itself") from error
                file.write(made.read_bytes())
            written.append(signature)
        return written


def describe_and_sign(bundle: Path, key: PrivateKey | None, base_model: str | None = None) -> list[Path]:
    """What was written. Raises ProvenanceError, OutputError."""
    return describe(bundle, base_model) + ([] if key is None else key.sign(bundle))


def verify_signatures(bundle: Path, public_key: Path) -> list[Path]:
    """Check bundle, provenance and documents against the signatures beside them; what was checked.

    Raises SignatureError or ProvenanceError naming the first file that is missing, or is not what was signed with that
    key.
    """
    key, provenance = PublicKey(public_key), beside(bundle, PROVENANCE)
    for path in (bundle, provenance):
        key.check(path)
    documents = _documents(provenance)
    if not any(name == bundle.name or name.startswith(f"{bundle.name}/") for name in documents):
        raise ProvenanceError(
            f"{provenance}: is another bundle's, not that of {bundle.name}; get both from their maker"
        )
    for name, sha256 in documents.items():
        path = bundle.parent / name
        if not path.is_file():
            raise ProvenanceError(f"{path}: missing; its provenance names it")
        with open_plain(path) as file:
            if sha256_of(file.fileno(), 0, path.stat().st_size) != sha256:
                raise ProvenanceError(f"{path}: not what its provenance names; get it again from its maker")
    return [bundle, provenance, *(bundle.parent / name for name in documents if bundle.parent / name != bundle)]


def _documents(provenance: Path) -> dict[str, str]:
    """What the statement, which is known to be signed, has digests of."""
    values = json.loads(read_plain(provenance))
    named = [*values["subject"], *values["predicate"]["runDetails"]["byproducts"]]
    return {each["name"]: each["digest"]["sha256"] for each in named}
