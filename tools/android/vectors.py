"""Test vectors that the Kotlin and the Python tests share: python -m tools.android.vectors

Written to android_demo/core/src/test/resources/vectors and checked in. tests/android/test_vectors.py holds them against
this project's own functions, the JUnit tests against the Kotlin ones.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.official import official_model
from gemma_edge.converter.plan.door import needs_of
from gemma_edge.converter.plan.footprint import cache_layout
from gemma_edge.converter.plan.target import Target
from gemma_edge.profiles.budget import MemoryBudget
from gemma_edge.profiles.device import load_profile, profile_names
from gemma_edge.profiles.footprint import Footprint, Part
from gemma_edge.profiles.sizes import GIB, MIB, format_bytes
from gemma_edge.runtime.formats.litertlm import ALIGNMENT_BYTES, BundleLayout, SectionKind, SectionSpec
from gemma_edge.runtime.measure.bench import Measurement, medians

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "android_demo/core/src/test/resources/vectors"
CONTEXT_STEP_TOKENS = 256

Values = dict[str, Any]


# ---------------------------------------------------------------- a bundle


def small_bundle() -> bytes:
    """A bundle of three small sections; the last has no digest in the table."""
    contents = [_noise(b"metadata", 300), _noise(b"vision", 1000), _noise(b"executor", 77)]
    recorded = [{"sha256": _sha256(content)} for content in contents[:2]]
    specs = [
        SectionSpec(SectionKind.LLM_METADATA, len(contents[0]), None, recorded[0]),
        SectionSpec(SectionKind.TFLITE_MODEL, len(contents[1]), "tf_lite_vision_encoder", recorded[1]),
        SectionSpec(SectionKind.EXECUTOR_METADATA, len(contents[2])),
    ]
    layout = BundleLayout.of(specs, "a bundle for tests")
    file = bytearray(layout.nbytes)
    file[: len(layout.header)] = layout.header
    for section, content in zip(layout.sections, contents, strict=True):
        file[section.begin : section.end] = content
    return bytes(file)


def shared_bundle() -> bytes:
    """A bundle whose first section goes on into the second one."""
    specs = [
        SectionSpec(SectionKind.TFLITE_MODEL, 300, "tf_lite_prefill_decode", reach=40),
        SectionSpec(SectionKind.TFLITE_MODEL, 77, "tf_lite_embedder"),
    ]
    layout = BundleLayout.of(specs, "a bundle for tests")
    return layout.header.ljust(layout.nbytes, b"\0")


def describe_bundle(bundle: bytes) -> Values:
    """What a reader has to find in it, and four ways to spoil a place with what a reader has to say."""
    header_end = struct.unpack_from("<Q", bundle, 24)[0]
    begins = [ALIGNMENT_BYTES * (i + 1) for i in range(3)]
    names = ["llm_metadata", "tf_lite_vision_encoder", "executor_metadata"]
    sizes = [300, 1000, 77]
    sections = [
        {"name": name, "begin": begin, "end": begin + size, "sha256": _sha256(bundle[begin : begin + size])}
        for name, begin, size in zip(names, begins, sizes, strict=True)
    ]
    sections[2]["sha256"] = None

    def spoiled(place: int, value: int, what: str) -> Values:
        """The one occurrence of a 64-bit offset in the header, replaced."""
        at = bundle.index(struct.pack("<Q", place), 0, header_end)
        return {"at": at, "bytes": list(struct.pack("<Q", value)), "message": what}

    vision, end, size = begins[1], begins[1] + sizes[1], len(bundle)
    where = "section tf_lite_vision_encoder at bytes"
    misplaced = [
        spoiled(end, vision, f"{where} {vision} to {vision}: has no bytes"),
        spoiled(vision, vision + 8, f"{where} {vision + 8} to {end}: not aligned to {ALIGNMENT_BYTES} bytes"),
        spoiled(vision, begins[0], f"{where} {begins[0]} to {end}: overlaps what ends at {begins[0] + sizes[0]}"),
        spoiled(end, size + 1, f"{where} {vision} to {size + 1}: truncated, the file has {size} bytes"),
    ]
    return {"header_end": header_end, "sha256": _sha256(bundle), "sections": sections, "misplaced": misplaced}


def _noise(seed: bytes, nbytes: int) -> bytes:
    return hashlib.shake_256(seed).digest(nbytes)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- verdicts


def plans() -> Values:
    """What the official models need, as the converter's report would say it."""
    cases = [("1b-int4", 4096), ("e2b-int4", 4096), ("e2b-int4", 32768), ("e4b-int4", 4096)]
    return {f"{target}@{context}": _plan(target, context) for target, context in cases}


def _plan(name: str, context_tokens: int) -> Values:
    target, model = Target.parse(name, context=context_tokens), official_model(name.partition("-")[0])
    footprint = needs_of(model, target).footprint
    layout, config = cache_layout(target, model), model.config
    owners = config.attention[: config.kv_layers]
    return {
        "anon_bytes": footprint.anon_bytes,
        "file_bytes": footprint.file_bytes,
        "context_tokens": context_tokens,
        "shortest_context_tokens": target.prefill_tokens[-1],
        "caches": [
            {
                "slots": layout.slots(owner.window),
                "nbytes": layout.nbytes(owner.heads.kv, owner.heads.size, owner.window),
            }
            for owner in owners
        ],
    }


def anon_bytes_at(plan: Mapping[str, Any], context_tokens: int) -> int:
    """At most, converted for a shorter context: the caches are smaller. executors/litert/footprint.py sums likewise."""
    anon_bytes: int = plan["anon_bytes"]
    unused_bytes: int = sum(
        cache["nbytes"] - cache["nbytes"] // cache["slots"] * min(cache["slots"], context_tokens)
        for cache in plan["caches"]
    )
    return anon_bytes - unused_bytes


def devices() -> Values:
    """Each profile as a phone whose usable memory is the profile's budget; and three in trouble."""
    found = {}
    for name in profile_names():
        profile = load_profile(name)
        threshold = profile.ram_bytes // 16
        found[name] = _device(profile.budget_bytes + threshold, threshold, profile.ram_bytes)
    low = _device(2 * GIB, 256 * MIB, 8 * GIB)
    return found | {
        "8 GiB, low memory": low | {"is_low": True},
        "8 GiB, little free": low | {"available_bytes": 640 * MIB},
        "512 MiB": _device(300 * MIB, 64 * MIB, 512 * MIB),
        "nothing usable": _device(100 * MIB, 128 * MIB, 256 * MIB),
    }


def _device(available_bytes: int, threshold_bytes: int, total_bytes: int) -> Values:
    return {
        "available_bytes": available_bytes,
        "threshold_bytes": threshold_bytes,
        "total_bytes": total_bytes,
        "advertised_bytes": None,
        "is_low": False,
    }


def verdict(plan: Mapping[str, Any], device: Mapping[str, Any]) -> Values:
    """How the two go together, by this project's own MemoryBudget."""
    usable_bytes = 0 if device["is_low"] else max(0, device["available_bytes"] - device["threshold_bytes"])
    needed_bytes = plan["anon_bytes"] + plan["file_bytes"]

    def fits(anon_bytes: int, file_bytes: int) -> bool:
        footprint = Footprint((Part("planned", anon_bytes, file_bytes, "vector"),))
        return usable_bytes > 0 and MemoryBudget(usable_bytes).fits(footprint)

    if fits(plan["anon_bytes"], plan["file_bytes"]):
        return _verdict("FITS", needed_bytes, usable_bytes, None)
    contexts = range(plan["context_tokens"], plan["shortest_context_tokens"] - 1, -CONTEXT_STEP_TOKENS)
    shorter = next((c for c in contexts if fits(anon_bytes_at(plan, c), plan["file_bytes"])), None)
    if fits(plan["anon_bytes"], 0):
        fit = "SLOW"
    else:
        fit = "NOT_NOW" if plan["anon_bytes"] <= device["total_bytes"] - device["threshold_bytes"] else "NEVER"
    return _verdict(fit, needed_bytes, usable_bytes, shorter)


def _verdict(fit: str, needed_bytes: int, usable_bytes: int, shorter_context_tokens: int | None) -> Values:
    return {
        "fit": fit,
        "needed_bytes": needed_bytes,
        "usable_bytes": usable_bytes,
        "missing_bytes": max(0, needed_bytes - usable_bytes),
        "shorter_context_tokens": shorter_context_tokens,
    }


def verdicts(stored_plans: Mapping[str, Any]) -> Values:
    """Every plan on every device."""
    stored = {name: plan | {"shorter": _shorter(plan)} for name, plan in stored_plans.items()}
    cases = [
        {"plan": plan, "profile": name, "device": device, "verdict": verdict(stored[plan], device)}
        for plan in stored
        for name, device in devices().items()
    ]
    return {"plans": stored, "cases": cases}


def _shorter(plan: Mapping[str, Any]) -> list[Values]:
    return [{"context_tokens": context, "anon_bytes": anon_bytes_at(plan, context)} for context in (4096, 1024, 256)]


# ---------------------------------------------------------------- sizes


def sizes() -> Sequence[Values]:
    """Sizes as people read them."""
    cases = [0, 1, 1023, 1024, 1536, 2047, MIB - 1, MIB, 324 * MIB + 1, GIB - 1, GIB, 3 * GIB // 2, 3_163_500_544, -MIB]
    return [{"bytes": size, "text": format_bytes(size)} for size in cases]


# ---------------------------------------------------------------- a benchmark


def bench() -> Values:
    """What `gemma-edge bench --json` makes of four runs with LiteRT-LM's engine."""
    runs = [
        Measurement(1.5, 0.25, 100.0, 10.5, 400 * MIB, GIB, GIB + 300 * MIB),
        Measurement(1.25, 0.75, 90.0, 12.5, 402 * MIB, GIB, GIB + 302 * MIB),
        Measurement(2.5, 0.5, 80.0, 11.5, 401 * MIB, GIB + 2, GIB + 301 * MIB),
        Measurement(2.0, 1.0, 70.0, 13.5, 404 * MIB, GIB + 4, GIB + 304 * MIB),
    ]
    return {
        "median": asdict(medians(runs)),
        "runs": [asdict(run) for run in runs],
        "partitions": {},
        "encoders": {},
    }


# ---------------------------------------------------------------- signatures

CURVES = ("P-256", "P-384", "P-521")
OTHER_CURVE = "secp256k1"  # which nobody signs models with
SIGNED_NAME = "small.litertlm"


def private_key(curve: str) -> "EllipticCurvePrivateKey":
    """The same one each time, and no secret: nothing but tests trusts it."""
    from cryptography.hazmat.primitives.asymmetric import ec

    classes = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1(), ec.SECP256K1())
    curves = dict(zip((*CURVES, OTHER_CURVE), classes, strict=True))
    return ec.derive_private_key(int.from_bytes(_noise(curve.encode(), 30)), curves[curve])


def public_pem(curve: str) -> str:
    """In PEM, as an app has it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem: bytes = private_key(curve).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def signatures(bundle: bytes) -> Values:
    """The bundle signed by the package model-signing with a key of each curve.

    "other": a signature of a bundle with a byte more; "other_curve": a public key that no such signature is made with.

    Other bytes each time: ECDSA draws a number.
    """
    signed = {curve: {"key": public_pem(curve), "signature": _sign(curve, bundle)} for curve in CURVES}
    return {"curves": signed, "other": _sign("P-256", bundle + b"\0"), "other_curve": public_pem(OTHER_CURVE)}


def _sign(curve: str, content: bytes) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from model_signing import signing

    with TemporaryDirectory() as folder:
        key, bundle, signature = (Path(folder) / name for name in ("key.pem", SIGNED_NAME, "signature"))
        form = PrivateFormat.PKCS8
        key.write_bytes(private_key(curve).private_bytes(Encoding.PEM, form, NoEncryption()))
        bundle.write_bytes(content)
        signing.Config().use_elliptic_key_signer(private_key=key).sign(bundle, signature)
        return signature.read_text()


def main() -> None:
    """Write them all anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    bundle = small_bundle()
    (FOLDER / "small.litertlm").write_bytes(bundle)
    (FOLDER / "shared.litertlm").write_bytes(shared_bundle())
    for name, values in {
        "small.json": describe_bundle(bundle),
        "verdicts.json": verdicts(plans()),
        "sizes.json": sizes(),
        "bench.json": bench(),
        "signed.json": signatures(bundle),
    }.items():
        (FOLDER / name).write_text(json.dumps(values, indent=1) + "\n")
    checkpoint = REPOSITORY / "tests/fixtures/tiny-gemma3n"
    convert("custom-int4", checkpoint, FOLDER / "tiny.litertlm", profile="phone-2gb")
    (FOLDER / "tiny.litertlm").unlink()  # of use is its report


if __name__ == "__main__":
    main()
