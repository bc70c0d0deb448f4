"""Same values, same bytes, on any machine: hashes as first computed, with and without vector instructions and threads.

python -m tests.converter.quantize.test_quantize_reproducible    prints the hashes
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.converter.quantize.quantize import quantize_rows
from gemma_edge.runtime.formats.encoding import Encoding

HASHES = {
    "fp16": "b90754fc9bdebde3",
    "int8": "7a56ffd7f2cb16a7",
    "int4": "c82a23433c742a5d",
    "int2": "22019b9982e20624",
    "int4-b32": "ab8c70612a823b96",
    "int4-b256": "6f582670991bbecc",
}


def stored_hash(name: str) -> str:
    """The start of the SHA-256 of values and scales, for values made of integers: no random generator, no libm."""
    position = np.arange(48 * 1536, dtype=np.int64)
    noise = (position * 2654435761 % 4093 - 2046) * (position * 40503 % 1021 + 1)  # products: most of them are small
    values = (noise.astype(np.float32) / np.float32(2**24)).reshape(48, 1536)
    stored = quantize_rows(values, Encoding.parse(name))
    scales = b"" if stored.scales is None else stored.scales.tobytes()
    return hashlib.sha256(stored.data.tobytes() + scales).hexdigest()[:16]


@pytest.mark.parametrize("name", HASHES)
def test_the_bytes_are_those_of_every_other_machine(name: str) -> None:
    assert stored_hash(name) == HASHES[name]


def test_the_bytes_do_not_depend_on_vector_instructions_or_blas_kernels() -> None:
    """Other sums, other BLAS: numpy without its optional instruction sets, OpenBLAS for an old core and one thread."""
    features = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]  # numpy has no public name
    dispatched = np._core._multiarray_umath.__cpu_dispatch__  # type: ignore[attr-defined]
    plain = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in dispatched if features.get(name)),
        "OPENBLAS_CORETYPE": "Prescott",  # known on x86 only; elsewhere OpenBLAS ignores it
        "OPENBLAS_NUM_THREADS": "1",
    }
    printed = subprocess.run(
        [sys.executable, "-m", "tests.converter.quantize.test_quantize_reproducible"],
        env=os.environ | plain,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert dict(line.split() for line in printed.splitlines()) == HASHES


if __name__ == "__main__":
    for encoding_name in HASHES:
        print(encoding_name, stored_hash(encoding_name))
