"""Flip single bits of a signed bundle and of what lies beside it: everything but the bundle as it was is refused.

python -m tools.sign_proof --flips 1000 --seed 1
"""

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click

from gemma_edge.converter.convert import convert
from gemma_edge.converter.provenance.beside import BILL, CARD, PROVENANCE, PrivateKey, beside, describe
from gemma_edge.converter.provenance.beside import verify_signatures as verify
from gemma_edge.converter.provenance.facts import ProvenanceError
from gemma_edge.runtime.formats.trust.signed import SignatureError

CHECKPOINT = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "tiny-gemma3"
_DOCUMENTS = (BILL, CARD, PROVENANCE)


class AcceptedError(Exception):
    """A changed byte that nobody noticed."""


def make_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A private and a public key on P-256."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    no_password = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, no_password))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def flip(bundle: Path, public_key: Path, count: int, seed: int) -> Counter[str]:
    """So many bits, one at a time, four of five in the bundle itself; how many were refused in each file.

    Raises AcceptedError.
    """
    rng = random.Random(seed)
    refused: Counter[str] = Counter()
    for _ in range(count):
        path = bundle if rng.random() < 0.8 else beside(bundle, rng.choice(_DOCUMENTS))
        position, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        with path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ bit]))
            file.flush()
            try:
                verify(bundle, public_key)
                raise AcceptedError(f"{path.name}: bit {bit} of byte {position} may be turned")
            except (ProvenanceError, SignatureError):
                refused[path.name] += 1
            file.seek(position)
            file.write(bytes([byte]))
    verify(bundle, public_key)  # as it was
    return refused


@click.command(help=__doc__)
@click.option("--flips", default=1000, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(flips: int, seed: int) -> None:
    """Prints how many were refused; exit status 1 where one was not."""
    with tempfile.TemporaryDirectory(prefix="sign-proof-") as folder:
        private, public = make_keys(Path(folder))
        bundle = Path(folder) / "model.litertlm"
        convert("custom-int4", CHECKPOINT, bundle)
        describe(bundle)
        PrivateKey.load(private).sign(bundle)
        try:
            refused = flip(bundle, public, flips, seed)
        except AcceptedError as error:
            sys.exit(f"error: {error}")
    print(f"{sum(refused.values())} of {flips} refused: {dict(sorted(refused.items()))}")


if __name__ == "__main__":
    main()
