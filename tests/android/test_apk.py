"""android_demo/ci/build: everything compiles into an APK, and the APK holds what it should."""

import re
import zipfile
from pathlib import Path

import pytest

from tests.android.scripts import run_script
from tools.android.apk import STUB_PACKAGE, badging, dex_classes


@pytest.fixture(scope="module")
def apk(repository: Path) -> Path:
    return Path(run_script(repository, "build").splitlines()[-1])


def test_badging(apk: Path) -> None:
    found = badging(apk)
    assert apk.name == "gemma-edge-demo-compile-check.apk"
    assert (found.package, found.version_name) == ("org.gemmaedge.app", "compile-check")
    assert (found.min_sdk, found.target_sdk) == (26, 36)
    assert found.launchable == "org.gemmaedge.app.ChatActivity"


def test_no_permission_beyond_what_is_used(apk: Path) -> None:
    assert badging(apk).permissions == {
        f"android.permission.{name}"
        for name in (
            "ACCESS_NETWORK_STATE",
            "FOREGROUND_SERVICE",
            "FOREGROUND_SERVICE_DATA_SYNC",
            "INTERNET",
            "POST_NOTIFICATIONS",
            "RECEIVE_BOOT_COMPLETED",
            "RECORD_AUDIO",
            "WAKE_LOCK",
        )
    }


def test_every_class_is_in_and_the_signatures_are_not(apk: Path, repository: Path) -> None:
    classes = dex_classes(apk)
    assert not {name for name in classes if name.startswith((STUB_PACKAGE, "Landroid/"))}
    for module in ("core", "engine", "app"):
        sources = sorted((repository / "android_demo" / module / "src/main/kotlin").rglob("*.kt"))
        declared = {
            f"L{package.replace('.', '/')}/{name};"
            for text in (path.read_text() for path in sources)
            for package in re.findall(r"^package (\S+)", text, re.MULTILINE)
            for name in re.findall(r"^(?:\w+ )*(?:class|interface|object) (\w+)", text, re.MULTILINE)
        }
        assert declared
        assert declared <= classes, f"{module}: {sorted(declared - classes)}"
    assert "Lkotlin/Unit;" in classes
    assert "Lkotlinx/coroutines/flow/StateFlow;" in classes


def test_resources_and_assets_are_in(apk: Path, repository: Path) -> None:
    with zipfile.ZipFile(apk) as archive:
        names = set(archive.namelist())
    assert {"AndroidManifest.xml", "resources.arsc", "classes.dex"} <= names
    assets = repository / "android_demo/app/src/main/assets"
    assert {f"assets/{path.relative_to(assets)}" for path in assets.rglob("*") if path.is_file()} <= names
    layouts = (repository / "android_demo/app/src/main/res/layout").glob("*.xml")
    assert {f"res/layout/{path.name}" for path in layouts} <= names
