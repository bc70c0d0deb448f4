"""Paths of the fixtures, and the rule for tests whose tool is missing."""

import logging
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tools.real_model import RealModel

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "tests" / "fixtures"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_gemma3() -> Path:
    """A trained Gemma 3 checkpoint of 1.7 M parameters."""
    return FIXTURES / "tiny-gemma3"


@pytest.fixture(scope="session")
def tiny_gemma3n() -> Path:
    """A trained Gemma 3n checkpoint of 2.2 M parameters."""
    return FIXTURES / "tiny-gemma3n"


@pytest.fixture(scope="session")
def tiny_gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 4 checkpoint in the layers of E2B, with the same tokenizer."""
    from tools.tiny import write_tiny

    directory = tmp_path_factory.mktemp("gemma4") / "tiny-gemma4"
    write_tiny("gemma4-e2b-pattern", directory)
    return directory


@pytest.fixture(scope="session")
def val_bin() -> Path:
    """132,300 held-out token ids of both checkpoints' tokenizer, little-endian uint16."""
    return FIXTURES / "val.bin"


@pytest.fixture(scope="session")
def timm() -> None:
    """timm can be imported from now on."""
    from tools.timm_beside import TimmMissingError, load_timm

    try:
        load_timm()
    except TimmMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_model() -> "RealModel":
    """google/gemma-3-270m, trained, fetched once into the user's cache folder. Skips where that is impossible."""
    from tools.real_model import RealModelMissingError
    from tools.real_model import real_model as fetched

    try:
        return fetched()
    except RealModelMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_checkpoint(real_model: "RealModel") -> Path:
    """Its Hugging Face directory, in bfloat16."""
    return real_model.checkpoint


@pytest.fixture(scope="session")
def real_gguf(real_model: "RealModel") -> Path:
    """llama.cpp's file that the directory was made from: Q4_K_M."""
    return real_model.gguf


def _fail_a_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("GEMMA_EDGE_NO_SKIP") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, but GEMMA_EDGE_NO_SKIP=1 forbids it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every tool is said to be installed (.ci/run), a skipped test is a failed test."""
    report = yield
    _fail_a_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module skipped as a whole."""
    report = yield
    _fail_a_skip(report)
    return report


@pytest.fixture(autouse=True)
def _log_level() -> None:
    """set_min_log_severity, which programs call, is for the whole process: not for the tests that follow."""
    logging.getLogger("gemma_edge").setLevel(logging.NOTSET)
