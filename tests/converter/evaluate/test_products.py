"""Large products divided between threads: the same numbers, and BLAS left as it was."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gemma_edge.converter.evaluate import products
from gemma_edge.converter.evaluate.products import gram, one_thread_each, product


@pytest.mark.parametrize("shape", [(3, 5, 7), (600, 300, 200), (70, 999, 1001), (1, 8192, 4096)])
def test_a_product_is_that_of_numpy(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32).T
    expected = a.astype(float) @ b
    np.testing.assert_allclose(product(a, b), expected, atol=1e-4 * k**0.5)
    out = np.zeros((m, 2 * n), np.float32)
    product(a, b, out[:, n:])
    np.testing.assert_allclose(out[:, n:], expected, atol=1e-4 * k**0.5)
    assert not out[:, :n].any()


@pytest.mark.parametrize("shape", [(7, 3), (900, 401), (2000, 256)])
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_a_gram_is_symmetric_and_that_of_numpy(
    shape: tuple[int, int], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "CORES", cores)
    x = np.random.default_rng(2).standard_normal(shape, np.float32)
    found = gram(x)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, x.T.astype(float) @ x, atol=1e-2)


def test_blas_gets_its_threads_back_whoever_leaves_last() -> None:
    before = products._blas_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            a = np.ones((600, 600), np.float32)
            list(pool.map(lambda _: product(a, a), range(40)))
        with one_thread_each():
            with one_thread_each():
                pass
            assert products._blas_threads(1) in (0, 1)
        assert products._blas_threads(2) in (0, 2)
    finally:
        if before:
            products._blas_threads(before)
