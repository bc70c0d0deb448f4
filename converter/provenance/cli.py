"""`gemma-edge sign` and `gemma-edge verify-signature`."""

import os
from pathlib import Path
from typing import Final

import click

from gemma_edge.converter.provenance.beside import PrivateKey, describe, verify_signatures
from gemma_edge.profiles.paths import user_path

PASSWORD: Final = "GEMMA_EDGE_KEY_PASSWORD"


def private_key(path: Path) -> PrivateKey:
    """With the password that the environment has, if it has one. Raises ProvenanceError."""
    return PrivateKey.load(user_path(path), os.environ.get(PASSWORD))


def describe_and_sign(bundle: Path, key: PrivateKey | None, base_model: str | None = None) -> list[Path]:
    """What was written. Raises ProvenanceError, OutputError."""
    return describe(bundle, base_model) + ([] if key is None else key.sign(bundle))


@click.command("sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="Private key in PEM; without one, nothing is signed.")
@click.option("--base-model", metavar="ORG/NAME", help="What the checkpoint was tuned from, on the hub.")
def sign_main(bundle: Path, key: Path | None, base_model: str | None) -> None:
    """Write where a bundle comes from beside it, and sign both.

    A provenance statement (in-toto, SLSA), a bill of materials (CycloneDX), a model card, and a signature each for bundle
    and provenance. The password of an encrypted key is read from GEMMA_EDGE_KEY_PASSWORD.
    """
    signer = None if key is None else private_key(key)
    for path in describe_and_sign(user_path(bundle), signer, base_model):
        click.echo(path)


@click.command("verify-signature")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Public key in PEM.")
def verify_signature_main(bundle: Path, key: Path) -> None:
    """Check that a bundle and what lies beside it are what the owner of a key has signed.

    Exit status 1: they are not.
    """
    for path in verify_signatures(user_path(bundle), user_path(key)):
        click.echo(f"as signed: {path}")
