"""`gemma-edge sign` and `gemma-edge verify-signature`."""

from pathlib import Path

import click

from gemma_edge.profiles.paths import user_path


@click.command("sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="Private key in PEM; without one, nothing is signed.")
@click.option("--base-model", metavar="ORG/NAME", help="What the checkpoint was tuned from, on the hub.")
def sign_main(bundle: Path, key: Path | None, base_model: str | None) -> None:
    """Write where a bundle comes from beside it, and sign both.

    A provenance statement (in-toto, SLSA), a bill of materials (CycloneDX), a model card, and a signature each for
    bundle and provenance. The password of an encrypted key is read from GEMMA_EDGE_KEY_PASSWORD.
    """
    from gemma_edge.converter.provenance.beside import PrivateKey, describe_and_sign

    signer = None if key is None else PrivateKey.load(user_path(key))
    for path in describe_and_sign(user_path(bundle), signer, base_model):
        click.echo(path)


@click.command("verify-signature")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Public key in PEM.")
def verify_signature_main(bundle: Path, key: Path) -> None:
    """Check that a bundle and what lies beside it are what the owner of a key has signed.

    Exit status 1: they are not.
    """
    from gemma_edge.converter.provenance.beside import verify_signatures

    for path in verify_signatures(user_path(bundle), user_path(key)):
        click.echo(f"as signed: {path}")
