"""Archives that are the same from every build, what refuses them, and the Pythons that they are proven under."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.release.__main__ import main
from tools.release.archives import (
    Archives,
    WrongError,
    build_source,
    build_wheel,
    check_same,
    check_source,
    check_tag,
    check_wheel,
    clone,
    run,
    tracked_files,
)
from tools.release.environments import Environment, check_completion, extras
from tools.release.image import Engine
from tools.release.pythons import VERSIONS, find_python

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "backend"
backend-path = ["tools/release"]
[project]
name = "sample"
version = "1.2"
[tool.setuptools]
packages = ["sample"]
"""


@pytest.fixture(scope="module")
def project(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of git that is built as ours is: with a link, a program and a file that does not belong to it."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("tools/release", "sample", "build/lib/sample"):
        (root / folder).mkdir(parents=True)
    shutil.copy(repository / "tools" / "release" / "backend.py", root / "tools" / "release")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "sample" / "__init__.py").write_text("")
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o775)
    (root / "link").symlink_to("sample")
    (root / ".gitignore").write_text("build\n*.egg-info\n")
    git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-C", str(root)]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Begin"]):
        subprocess.run([*git, *arguments], check=True)
    (root / "notes").write_text("not for others")
    (root / "build" / "lib" / "sample" / "gone.py").write_text("")
    return root


@pytest.fixture(scope="module")
def archives(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Archives:
    return Archives.of(project, tmp_path_factory.mktemp("out"), isolated=False)


def test_every_build_gives_the_same_bytes(
    project: Path, archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = clone(project, tmp_path / "other")
    assert (other / "program").stat().st_mode & 0o777 == 0o700
    os.utime(other / "sample" / "__init__.py", (1e9, 1e9))
    again = Archives.of(other, tmp_path / "out", isolated=False)
    check_same(archives.source, again.source)
    check_same(archives.wheel, again.wheel)
    check_same(archives.wheel, build_wheel(project, tmp_path / "checkout", isolated=False))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    dated = build_source(other, tmp_path / "dated")
    with pytest.raises(WrongError, match=r"sample-1\.2\.tar\.gz: two builds of the same sources differ"):
        check_same(archives.source, dated)


def test_a_source_archive_holds_what_git_tracks(project: Path, archives: Archives) -> None:
    tracked = tracked_files(project)
    assert {"link", "program", "tools/release/backend.py"} <= set(tracked)
    check_source(archives.source, tracked)
    message = r"sample-1\.2\.tar\.gz: more\.py: expected what git tracks and PKG-INFO"
    with pytest.raises(WrongError, match=message):
        check_source(archives.source, [*tracked, "more.py"])


def test_what_is_gone_is_not_packed(archives: Archives) -> None:
    packed = zipfile.ZipFile(archives.wheel).infolist()
    assert "sample/__init__.py" in {entry.filename for entry in packed}
    assert "sample/gone.py" not in {entry.filename for entry in packed}
    assert {entry.external_attr >> 16 for entry in packed} == {0o100644}


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("x-1-cp311-cp311-linux_x86_64.whl", "gemma_edge/a.py", "expected a wheel for any platform, py3-none-any"),
        ("x-1-py3-none-any.whl", "tools/a.py", "holds tools; expected gemma_edge alone"),
    ],
)
def test_a_wheel_of_another_kind_is_refused(tmp_path: Path, name: str, held: str, message: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr("gemma_edge/b.py", "")
        wheel.writestr(held, "")
    with pytest.raises(WrongError, match=f"{re.escape(name)}: {message}"):
        check_wheel(tmp_path / name)


@pytest.mark.parametrize(
    ("tag", "day", "message"),
    [
        ("v1.3", "2026-12-01", r"tag v1\.3: pyproject\.toml says 1\.2, expected v1\.2; change one of them"),
        ("v1.2", "unreleased", r"CHANGELOG\.md: no line '## \[1\.2\] - YYYY-MM-DD'; say what is new, and the day"),
    ],
)
def test_a_tag_that_says_another_version_is_refused(tmp_path: Path, tag: str, day: str, message: str) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [1.2] - {day}\n")
    with pytest.raises(WrongError, match=message):
        check_tag(tag, tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("## [1.2] - 2026-12-01\n")
    check_tag("v1.2", tmp_path)


def test_a_failed_step_says_what_it_printed() -> None:
    with pytest.raises(WrongError, match=r"sh -c echo lost >&2; exit 3: status 3: lost"):
        run(["sh", "-c", "echo lost >&2; exit 3"], os.environ)


def test_pythons_are_found_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = "{}.{}".format(*sys.version_info)
    assert here in VERSIONS
    assert find_python(here) == Path(sys.executable)
    assert find_python("2.6") is None
    pyenv = tmp_path / "versions" / "9.9.1" / "bin"
    pyenv.mkdir(parents=True)
    (pyenv / "python").write_text("#!/bin/sh\necho 9.9\n")
    (pyenv / "python").chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert find_python("9.9") == pyenv / "python"
    refused = CliRunner().invoke(main, ["prove", "--python", "2.6"])
    assert refused.exit_code == 1
    assert "error: Python 2.6: not found, or without ensurepip; install it" in refused.output


def _answering(printed: str) -> Callable[..., str]:
    return lambda *_: printed


def test_more_than_our_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "gemma_edge/a.py\n../../../bin/convert\n../../../bin/gemma-edge\ngemma_edge-1.dist-info/RECORD\n"
    monkeypatch.setattr(Environment, "run", _answering(ours))
    Environment(Path("x")).check_installed()
    monkeypatch.setattr(Environment, "run", _answering(ours + "tools/a.py\n../../../bin/other\n"))
    message = r"gemma-edge installs \.\./\.\./\.\./bin/other, tools; expected gemma_edge alone"
    with pytest.raises(WrongError, match=message):
        Environment(Path("x")).check_installed()


def test_a_demo_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Environment, "run", _answering("\n"))
    with pytest.raises(WrongError, match=r"x\.litertlm: gemma-edge run printed nothing; expected a text"):
        Environment(Path("x")).convert_demo(Path("c"), Path("x.litertlm"))


def test_a_shell_that_is_offered_nothing_is_refused(tmp_path: Path) -> None:
    check_completion(Path(sys.executable).parent)
    (tmp_path / "gemma-edge").write_text("#!/bin/sh\necho '_convert_completion() { COMPREPLY=(e2b-int3); }'\n")
    (tmp_path / "gemma-edge").chmod(0o755)
    message = r"convert --target e2b-int: bash is offered \['e2b-int3'\]; expected e2b-int4 and e2b-int8"
    with pytest.raises(WrongError, match=message):
        check_completion(tmp_path)


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(WrongError, match="nopodman --x: not found; install podman or docker"):
        Engine(("nopodman", "--x"))


def test_extras_are_those_for_users() -> None:
    assert {"litert", "onnx", "serve", "farm"} <= set(extras())
    assert not {"dev", "real"} & set(extras())


@pytest.mark.parametrize("command", [[], ["build"], ["prove"], ["image"]])
def test_the_tool_says_what_it_does(command: list[str]) -> None:
    helped = CliRunner().invoke(main, [*command, "--help"])
    assert helped.exit_code == 0
    assert "Usage:" in helped.output
