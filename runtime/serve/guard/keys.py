"""API keys, in a file that holds no key: a name, a salt and a hash for each, one JSON object in a line.

A key is `ge-ID-SECRET`. The id finds the line, so that one hash is computed for a request however many keys there are.
The secret has 256 random bits: nobody can try them all, so the hash need not be slow, as one of a password must.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.serve.guard.decisions import LOGGER

_PREFIX = "ge"
_MOST_BYTES = 1 << 20  # of a file


class KeyFileError(GemmaEdgeError, ValueError):
    """A file of keys that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One line. salt, hash: hexadecimal, the hash is SHA-256 of salt and secret. created: ISO 8601, UTC.

    requests, tokens: this key's own limits; None: those of all.
    """

    id: str
    name: str
    salt: str
    hash: str
    created: str = ""
    requests: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("requests", "tokens"):
                if not isinstance(value, str):
                    raise KeyFileError(f"{name} is {value!r}, expected text")
            elif value is not None and (not isinstance(value, int) or value < 1):
                raise KeyFileError(f"{name} is {value!r}, expected a number of at least 1")
        if not self.name or len(_bytes(self.salt)) < 16 or len(_bytes(self.hash)) != 32:
            raise KeyFileError("expected a name, a salt of at least 16 bytes and a hash of 32, in hexadecimal")

    @property
    def pseudonym(self) -> str:
        """What it is called in logs and statistics: the same after a restart, and no part of the key."""
        return hashlib.sha256(_bytes(self.hash)).hexdigest()[:16]

    def fits(self, secret: str) -> bool:
        """In a time that does not depend on where they differ."""
        return hmac.compare_digest(_hash(_bytes(self.salt), secret), _bytes(self.hash))


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _hash(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode(errors="surrogatepass")).digest()


def new_key(path: Path, name: str, *, requests: int | None = None, tokens: int | None = None) -> str:
    """Make a key, add it to the file, and return it: the only time it can be read. The file is made where none is.

    requests, tokens: limits of this key alone. Raises KeyFileError: no such file, or the name is taken. OutputError.
    """
    keys = list(read_keys(path).values()) if path.exists() else []
    if not name.strip() or not name.isprintable():
        raise KeyFileError(f"the name of a key is {name!r}, expected what can be read; say who will use it")
    if any(key.name == name for key in keys):
        raise KeyFileError(f"{path}: there is a key {name} already; choose another name, or delete its line first")
    identity, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_bytes(16)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    keys.append(
        Key(
            id=identity,
            name=name,
            salt=salt.hex(),
            hash=_hash(salt, secret).hex(),
            created=created,
            requests=requests,
            tokens=tokens,
        )
    )
    lines = [json.dumps({field: value for field, value in asdict(key).items() if value is not None}) for key in keys]
    with atomic_file(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write("".join(f"{line}\n" for line in lines).encode())
    return f"{_PREFIX}-{identity}-{secret}"


def read_keys(path: Path) -> dict[str, Key]:
    """By id. Raises KeyFileError: not there, or a line that is no key."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise KeyFileError(
            f"{path}: cannot read ({error.strerror}); make it with gemma-edge serve --new-key NAME"
        ) from None
    if len(data) > _MOST_BYTES:
        raise KeyFileError(f"{path}: more than {_MOST_BYTES} bytes, expected a line for each key; name another file")
    found: dict[str, Key] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            key = Key(**values)
        except (ValueError, TypeError, RecursionError) as error:
            what = error if isinstance(error, KeyFileError) else "no key as --new-key writes it"
            raise KeyFileError(f"{path}, line {number}: {what}; delete the line and make a new key") from None
        if key.id in found:
            raise KeyFileError(f"{path}, line {number}: the id {key.id} is there twice; delete one of the lines")
        found[key.id] = key
    return found


class KeyFile:
    """The keys of a file, read again when it has changed: a line that is deleted ends its key at once."""

    def __init__(self, path: Path) -> None:
        """Raises KeyFileError."""
        self._path = path
        self._stamp = self._stamped()
        self._keys = read_keys(path)
        salt = secrets.token_bytes(16)
        self._nobody = Key(id="", name="nobody", salt=salt.hex(), hash=_hash(salt, secrets.token_hex(32)).hex())

    def find(self, key: str) -> Key | None:
        """Whose key it is. An unknown id takes as long as a wrong secret."""
        self._refresh()
        _, _, rest = key.partition("-")
        identity, _, secret = rest.partition("-")
        found = self._keys.get(identity) if key.startswith(f"{_PREFIX}-") else None
        return found if (found or self._nobody).fits(secret) and found is not None else None

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _refresh(self) -> None:
        """A file that is gone or broken meanwhile lets nobody in until it is repaired."""
        stamp = self._stamped()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = read_keys(self._path)
            except KeyFileError as error:
                self._keys = {}
                logging.getLogger(LOGGER).error("no key is accepted until this is repaired: %s", error)


def sent_key(headers: Mapping[str, str]) -> str | None:
    """The key of a request: `Authorization: Bearer KEY`, or `x-api-key: KEY`. headers: by lower-case name."""
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key", "").strip() or None
