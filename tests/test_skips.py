"""A missing tool skips its tests on a user's machine and fails them in CI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = {
    "test": "import pytest\n\ndef test_one():\n    pytest.skip('no java here')\n",
    "fixture": "import pytest\n\n@pytest.fixture\ndef f():\n    pytest.skip('no java here')\n\ndef test_one(f): ...\n",
    "mark": "import pytest\n\n@pytest.mark.skipif(True, reason='no java here')\ndef test_one(): ...\n",
    "module": "import pytest\n\npytest.skip('no java here', allow_module_level=True)\n",
}
EXPECTED_FAILURE = "import pytest\n\n@pytest.mark.xfail\ndef test_one():\n    assert False\n"


def _run(folder: Path, source: str, no_skip: str) -> subprocess.CompletedProcess[str]:
    """Run one test module in `folder` under this suite's conftest.py."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_it.py").write_text(source)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)]
    environment |= {
        "GEMMA_EDGE_NO_SKIP": no_skip,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # other packages' take seconds
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("where", SKIPPED)
def test_a_skip_is_reported_with_its_reason(tmp_path: Path, where: str) -> None:
    ran = _run(tmp_path, SKIPPED[where], no_skip="0")
    assert "1 skipped" in ran.stdout
    assert "no java here" in ran.stdout


@pytest.mark.parametrize("where", SKIPPED)
def test_a_skip_fails_where_nothing_may_skip(tmp_path: Path, where: str) -> None:
    ran = _run(tmp_path, SKIPPED[where], no_skip="1")
    assert ran.returncode != 0
    assert "skipped, but GEMMA_EDGE_NO_SKIP=1 forbids it: " in ran.stdout
    assert "no java here" in ran.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert _run(tmp_path, EXPECTED_FAILURE, no_skip="1").returncode == 0
