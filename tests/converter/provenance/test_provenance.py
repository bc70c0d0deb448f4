"""What is written beside a bundle: in the formats of others, the same every time, and refused once it is changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.provenance.beside import BILL, CARD, PROVENANCE, beside, describe
from gemma_edge.converter.provenance.facts import LICENCES, Facts, ProvenanceError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.formats.digest import sha256_of
from gemma_edge.runtime.formats.trust.signed import SIGNATURE, SignatureError

SMALL: dict[str, Any] = {"context": 256, "prefill": (8, 32)}


@pytest.fixture(scope="module")
def described(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its documents."""
    bundle = tmp_path_factory.mktemp("one") / "model.litertlm"
    convert("custom-int4", tiny_gemma3, bundle, **SMALL)
    describe(bundle, "org/anna")
    return bundle


def document(bundle: Path, suffix: str) -> Any:
    return json.loads(beside(bundle, suffix).read_bytes())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file.fileno(), 0, path.stat().st_size)


def copied(described: Path, folder: Path) -> Path:
    for path in described.parent.iterdir():
        shutil.copy(path, folder)
    return folder / described.name


def gemma_edge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_two_conversions_in_two_folders_give_the_same_bytes(described: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    """Of bundle and statements; the report alone says how long it took."""
    other = tmp_path / described.name
    convert("custom-int4", tiny_gemma3, other, **SMALL)
    describe(other, "org/anna")
    for suffix in ("", BILL, CARD, PROVENANCE):
        assert beside(other, suffix).read_bytes() == beside(described, suffix).read_bytes(), suffix


def test_the_statement_names_what_went_in_and_what_came_out(described: Path, tiny_gemma3: Path) -> None:
    """As in-toto's Statement v1 and SLSA's provenance v1 have it."""
    values = document(described, PROVENANCE)
    assert values["_type"] == "https://in-toto.io/Statement/v1"
    assert values["predicateType"] == "https://slsa.dev/provenance/v1"
    assert values["subject"] == [{"name": described.name, "digest": {"sha256": sha256(described)}}]
    definition, details = values["predicate"]["buildDefinition"], values["predicate"]["runDetails"]
    sources = {each["name"]: each["digest"]["sha256"] for each in definition["resolvedDependencies"]}
    assert sources["model.safetensors"] == sha256(tiny_gemma3 / "model.safetensors")
    assert definition["externalParameters"]["recipe"]["roles"]["ffn"]["encoding"] == "int4"
    byproducts = {each["name"]: each["digest"]["sha256"] for each in details["byproducts"]}
    assert byproducts == {beside(described, key).name: sha256(beside(described, key)) for key in (BILL, CARD)}
    assert set(values["predicate"]) == {"buildDefinition", "runDetails"}
    assert set(details["builder"]) == {"id", "version"}


def test_the_bill_is_one_by_its_schema(described: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    """Strictly; a folder's too, and one with the figures of a measurement."""
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    folder = tmp_path / "folder"
    convert("custom-int4", tiny_gemma3, folder, format="compressed-tensors", measure=False, **SMALL)
    describe(folder)
    for bundle in (described, folder):
        text = beside(bundle, BILL).read_text()
        assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"machine-learning-model"', '"brain"')) is not None
    component = document(described, BILL)["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": sha256(described)}]
    assert [each["name"] for each in component["pedigree"]["ancestors"]] == ["anna", "tiny-gemma3"]
    assert len(component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]) == 4
    inside = document(folder, BILL)["metadata"]["component"]["components"]
    assert {each["name"] for each in inside} == {f"folder/{path.name}" for path in folder.iterdir()}


def test_the_card_has_the_hubs_metadata(described: Path) -> None:
    yaml = pytest.importorskip("yaml")
    _, metadata, text = beside(described, CARD).read_text().split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "license": "gemma",
        "license_link": "https://ai.google.dev/gemma/terms",
        "base_model": "org/anna",
        "base_model_relation": "quantized",
        "library_name": "litert-lm",
        "pipeline_tag": "text-generation",
        "tags": ["gemma", "gemma3", "quantized", "on-device"],
    }
    assert sha256(described) in text


def test_every_family_has_a_licence() -> None:
    from gemma_edge.converter.models.family import FAMILIES

    assert set(LICENCES) == {family.__name__.rpartition(".")[2] for family in FAMILIES}


def test_what_cannot_be_described(described: Path, tmp_path: Path) -> None:
    bundle = copied(described, tmp_path)
    report = beside(bundle, ".json")
    for break_it, message in (
        (
            lambda: bundle.write_bytes(b"x"),
            "model.litertlm.json: is another bundle's; convert again to have this one's",
        ),
        (lambda: report.write_text("[]"), "is no report of a conversion; convert again to have one"),
        (report.unlink, r"model.litertlm.json: cannot be read \(No such file or directory\); name a bundle with its"),
    ):
        break_it()
        with pytest.raises(ProvenanceError, match=message):
            Facts.of(bundle)


class TestSignatures:
    """With the keys of OpenSSF model signing."""

    @pytest.fixture(scope="class")
    @staticmethod
    def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        pytest.importorskip("model_signing")
        from tools.sign_proof import make_keys

        return make_keys(tmp_path_factory.mktemp("keys"))

    @pytest.fixture(scope="class")
    @staticmethod
    def signed(described: Path, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
        bundle = copied(described, tmp_path_factory.mktemp("signed"))
        result = gemma_edge("sign", bundle, "--key", keys[0], "--base-model", "org/anna")
        assert result.exit_code == 0, result.output
        assert result.stdout.split()[-2:] == [f"{bundle}.sig", f"{bundle}.provenance.json.sig"]
        return bundle

    def test_flipped_bits_are_refused(self, signed: Path, keys: tuple[Path, Path]) -> None:
        from tools.sign_proof import flip

        assert sum(flip(signed, keys[1], 40, seed=1).values()) == 40

    def test_a_damaged_signature_is_refused_or_still_says_the_same(
        self, signed: Path, keys: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """Whatever a library makes of it: one line, never a traceback."""
        bundle = copied(signed, tmp_path)
        signature = beside(bundle, SIGNATURE)
        whole = signature.read_bytes()
        for i in range(0, len(whole), len(whole) // 25):
            signature.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
            result = gemma_edge("verify-signature", bundle, "--key", keys[1])
            assert result.exit_code == 0 or "not what was signed (" in result.stderr
            assert len(result.stderr.splitlines()) == result.exit_code
        for content in (b"", b"{}", b"[]", b"null", whole[: len(whole) // 2]):
            signature.write_bytes(content)
            assert gemma_edge("verify-signature", bundle, "--key", keys[1]).exit_code == 1

    def test_what_was_signed_verifies_by_the_libraries_own_command(self, signed: Path, keys: tuple[Path, Path]) -> None:
        from model_signing._cli import main as model_signing

        arguments = ["verify", "key", str(signed), "--signature", f"{signed}.sig", "--public_key", str(keys[1])]
        assert "Verification succeeded" in CliRunner().invoke(model_signing, arguments).output
        result = gemma_edge("verify-signature", signed, "--key", keys[1])
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines() == [
            f"as signed: {signed}{suffix}" for suffix in ("", ".provenance.json", ".README.md", ".cdx.json")
        ]

    def test_a_bundle_that_convert_signs(self, tiny_gemma3: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "folder"
        options = ("--format", "compressed-tensors", "--context", 256, "--no-measure")
        arguments = ("--target", "custom-int4", "--checkpoint", tiny_gemma3, "--out", out)
        result = gemma_edge("convert", *arguments, *options, "--sign", keys[0])
        assert result.exit_code == 0, result.output
        assert gemma_edge("verify-signature", out, "--key", keys[1]).exit_code == 0
        (out / "more").write_text("")
        assert "Extra files found in model" in gemma_edge("verify-signature", out, "--key", keys[1]).stderr
        result = gemma_edge("convert", *arguments, *options, "--sign", keys[1])  # before anything is converted
        assert "not a private key that can sign" in result.stderr

    def test_what_is_not_what_was_signed(self, signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
        from tools.sign_proof import make_keys

        bundle = copied(signed, tmp_path)
        _, others = make_keys(tmp_path, "other")
        said = {
            "Key mismatch": gemma_edge("verify-signature", bundle, "--key", others),
            "not a public key": gemma_edge("verify-signature", bundle, "--key", keys[0]),
            "cannot be read (No such file or directory); name a public key": gemma_edge(
                "verify-signature", bundle, "--key", tmp_path / "none"
            ),
            "cannot be read (No such file or directory); name a private key": gemma_edge(
                "sign", bundle, "--key", tmp_path / "none"
            ),
        }
        other = tmp_path / "other.litertlm"
        shutil.copy(bundle, other)
        for suffix in (SIGNATURE, PROVENANCE, PROVENANCE + SIGNATURE):
            shutil.copy(beside(bundle, suffix), beside(other, suffix))
        said["is another bundle's, not that of other.litertlm"] = gemma_edge(
            "verify-signature", other, "--key", keys[1]
        )
        beside(bundle, CARD).write_text("another")
        said["not what its provenance names; get it again"] = gemma_edge("verify-signature", bundle, "--key", keys[1])
        beside(bundle, CARD).unlink()
        said["missing; its provenance names it"] = gemma_edge("verify-signature", bundle, "--key", keys[1])
        beside(bundle, SIGNATURE).unlink()
        said[".sig: missing; without it model.litertlm cannot"] = gemma_edge(
            "verify-signature", bundle, "--key", keys[1]
        )
        for message, result in said.items():
            assert message in result.stderr
            assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.stderr

    @pytest.mark.parametrize("executor", ["litert", "litert-lm"])
    def test_an_engine_loads_what_a_trusted_key_signed(
        self, executor: str, signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = copied(signed, tmp_path)
        monkeypatch.setenv("GEMMA_EDGE_TRUSTED_KEY", str(keys[1]))
        arguments = ["run", bundle, "--prompt", "a", "--max-output-tokens", "1", "--executor", executor]
        assert gemma_edge(*arguments, "--cache-dir", tmp_path / "cache").exit_code == 0
        with bundle.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        result = gemma_edge(*arguments)
        assert result.exit_code == 1
        assert "model.litertlm: not what was signed (" in result.stderr

    def test_an_engine_is_told_what_to_trust(self, described: Path, keys: tuple[Path, Path]) -> None:
        with pytest.raises(SignatureError, match=r"litertlm\.sig: missing; without it model\.litertlm cannot"):
            Engine(str(described), trusted_key=keys[1])

    def test_a_link_is_not_signed(self, signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
        link = tmp_path / "link.litertlm"
        link.symlink_to(signed)
        shutil.copy(f"{signed}.json", f"{link}.json")
        assert "cannot be signed (" in gemma_edge("sign", link, "--key", keys[0]).stderr

    def test_an_encrypted_key_needs_its_password(
        self, signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from cryptography.hazmat.primitives import serialization as pem
        from cryptography.hazmat.primitives.asymmetric import ec

        bundle, key = copied(signed, tmp_path), tmp_path / "key.pem"
        private = ec.generate_private_key(ec.SECP384R1())
        encrypted = pem.BestAvailableEncryption(b"secret")
        key.write_bytes(private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encrypted))
        assert (
            "not a private key that can sign (Password was not given" in gemma_edge("sign", bundle, "--key", key).stderr
        )
        monkeypatch.setitem(os.environ, "GEMMA_EDGE_KEY_PASSWORD", "secret")
        result = gemma_edge("sign", bundle, "--key", key)
        assert result.exit_code == 0, result.output
